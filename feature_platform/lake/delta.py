"""Delta tables of the lake: open, create and replace, with errors in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from errno import EDQUOT, ENOSPC
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileSystem, LocalFileSystem, PyFileSystem, SubTreeFileSystem

from feature_platform.disk import DISK_FULL
from feature_platform.errors import UserError, one_line
from feature_platform.lake.tables import DAY, MONTH, PART
from feature_platform.settings import PREFIX, get_settings

try:
    from deltalake import (
        ColumnProperties,
        CommitProperties,
        DeltaTable,
        WriterProperties,
        write_deltalake,
    )
    from deltalake.exceptions import DeltaError, DeltaProtocolError
    from deltalake.fs import DeltaStorageHandler
except ImportError:
    raise UserError("the lake needs deltalake: pip install 'feature_platform[lake]'") from None

# The layout of the tables: a change of their partitions or columns of the platform raises it.
LAYOUT = 1
_DESCRIPTION = re.compile(
    r"feature_platform lake, layout (?P<layout>\d+)"
    r"(, parts (?P<parts>\d+), mirror (?P<mirror>\S+))?"
)
_MARK = "feature_platform"
_RESTORED = "feature_platform.restored"  # the mirror and the version that a commit restores
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# The library's text of a request without an answer.
_TIMED_OUT = "operation timed out"
# An object store that does not answer is an error after about this time, not after minutes.
_REMOTE = {"timeout": "20s", "connect_timeout": "5s", "max_retries": "4", "retry_timeout": "40s"}

# A row group has a part of a month of one symbol, so that a reader of one symbol decodes little
# else. LZ4 is read in half the time of ZSTD, and has 1.2 times its bytes.
_ROW_GROUP = 10_000
_PLAIN = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
_SYMBOL = ColumnProperties(dictionary_enabled=True, statistics_enabled="CHUNK")
# A quarter of the size of plain numbers, and of the time to read them.
_TIME = ColumnProperties(
    dictionary_enabled=False, encoding="DELTA_BINARY_PACKED", statistics_enabled="CHUNK"
)
# The numbers of refreshes rise with the time: 0.02 bytes a row.
_NUMBER = ColumnProperties(
    dictionary_enabled=False, encoding="DELTA_BINARY_PACKED", statistics_enabled="NONE"
)
_WRITER = WriterProperties(
    compression="LZ4_RAW",
    max_row_group_size=_ROW_GROUP,
    default_column_properties=_PLAIN,
    column_properties={
        "symbol": _SYMBOL,
        "ts": _TIME,
        "bucket": _TIME,
        "refresh_no": _NUMBER,
    },
)

# A reader reads the last checkpoint, and each commit after it.
_CHECKPOINT = 10


def location() -> str:
    """Return the directory or URL of the lake; raises UserError where none is configured."""
    lake = get_settings().lake
    if lake is None:
        raise UserError(
            f"no lake is configured: set {PREFIX}LAKE to a directory or a URL such as s3://bucket"
        )
    return lake


def uri_of(name: str) -> str:
    """Return the path or URL of a table of the lake."""
    return f"{location().rstrip('/')}/{name}"


def errors(name: str) -> AbstractContextManager[None]:
    """Raise UserError for an error of a table of the lake, as errors_at."""
    return errors_at(uri_of(name))


@contextmanager
def errors_at(uri: str) -> Iterator[None]:
    """Raise UserError for an error of a table's files or of the object store."""
    try:
        yield
    except DeltaProtocolError as error:
        raise UserError(
            f"{uri}: a newer version of Delta Lake wrote it: {_text(error)}; update the platform"
        ) from None
    except (DeltaError, OSError, pa.ArrowException) as error:
        text = _text(error)
        if any(os.strerror(number) in text for number in (ENOSPC, EDQUOT)):
            text = f"{DISK_FULL}; readers see the last commit: free some space, and run it again"
        elif _TIMED_OUT in text:
            text = f"the object store does not answer, try again later: {text}"
        raise UserError(f"{uri}: {text}") from None


def _text(error: Exception) -> str:
    """Return the text of an error without the colours that the library gives it."""
    return one_line(_COLOUR.sub("", str(error)))


def open_at(uri: str, version: int | None = None) -> DeltaTable | None:
    """Return a version of any Delta table, by default the newest; None where there is no table."""
    with errors_at(uri):
        if not DeltaTable.is_deltatable(uri, storage_options(uri)):
            return None
        try:
            return DeltaTable(uri, version, storage_options=storage_options(uri))
        except DeltaError as error:
            if version is None:
                raise
            raise UserError(
                f"{uri} does not have version {version} ({_text(error)}): run `feature-platform"
                " lake sync`"
            ) from None


def write_at(
    uri: str, rows: pa.RecordBatchReader, name: str, description: str, metadata: dict[str, str]
) -> None:
    """Write a Delta table, or all rows of one again, in one commit that carries the metadata."""
    with errors_at(uri):
        write_deltalake(
            uri,
            rows,
            mode="overwrite",
            name=name,
            description=description or None,
            writer_properties=_WRITER,
            storage_options=storage_options(uri),
            commit_properties=CommitProperties(custom_metadata=metadata),
        )


def open_table(name: str, version: int | None = None) -> DeltaTable | None:
    """Return a version of a table of the lake, by default the newest; None where there is none.

    Raises UserError for a table that this version of the platform cannot read, or that is none
    of the platform's.
    """
    uri = uri_of(name)
    table = open_at(uri, version)
    if table is None:
        return None
    found = _DESCRIPTION.match(table.metadata().description or "")
    if found is None:
        raise UserError(f"{uri} is not a table of the platform: choose another {PREFIX}LAKE")
    if int(found["layout"]) > LAYOUT:
        raise UserError(f"{uri}: a newer version of the platform wrote it: update the platform")
    return table


def mirror_of(table: DeltaTable) -> str:
    """Return the id of the mirror that a table belongs to; each database has its own."""
    found = _DESCRIPTION.match(table.metadata().description or "")
    return found["mirror"] if found else ""


def parts_of(table: DeltaTable) -> int:
    """Return the number of hashes of symbols that a table is divided by."""
    found = _DESCRIPTION.match(table.metadata().description or "")
    return int(found["parts"]) if found else 1


def create(name: str, mirror: str, parts: int, schema: pa.Schema) -> DeltaTable:
    """Create an empty table, in the place of an old one if there is one.

    schema: of the rows, with the columns of the partitions.
    """
    uri = uri_of(name)
    with errors(name):
        if not is_remote(uri):
            Path(uri).mkdir(parents=True, exist_ok=True)
        return DeltaTable.create(
            uri,
            schema,
            mode="overwrite",
            partition_by=[MONTH, PART],
            name=name,
            description=f"feature_platform lake, layout {LAYOUT}, parts {parts}, mirror {mirror}",
            configuration={"delta.checkpointInterval": str(_CHECKPOINT)},
            storage_options=storage_options(uri),
            commit_properties=_ours(mirror),
        )


def replace(table: DeltaTable, name: str, rows: pa.Table, predicate: str) -> None:
    """Replace the rows of a predicate, in one commit."""
    with errors(name):
        write_deltalake(
            table,
            rows,
            mode="overwrite",
            predicate=predicate,
            writer_properties=_WRITER,
            commit_properties=_ours(mirror_of(table)),
        )
        table.update_incremental()


def check_owner(table: DeltaTable, name: str, mirror: str) -> None:
    """Raise UserError for a table that another mirror wrote."""
    if mirror_of(table) != mirror:
        raise UserError(
            f"{uri_of(name)} is the lake of another database: choose another {PREFIX}LAKE, or"
            " replace it by `feature-platform lake sync --rebuild`"
        )


def check_newest_commit(table: DeltaTable, name: str) -> None:
    """Raise UserError where another program has made the newest commit of a table."""
    with errors(name):
        (newest,) = table.history(1)
    if not _is(newest, mirror_of(table)):
        raise UserError(
            f"{_changed_by(newest, name)}: run `feature-platform lake sync`, which undoes that"
        )


def undo_later_commits(table: DeltaTable, name: str, since: int) -> None:
    """Undo the commits after a version, and raise UserError if another program made some of them.

    Those of the platform are of a sync that died, or of a database that has lost its newest
    transactions. Raises UserError for a table that does not have the version.
    """
    mirror = mirror_of(table)
    if table.version() < since:
        raise UserError(
            f"{uri_of(name)} is older than the database: it has version {table.version()}, the"
            f" database knows {since}; `feature-platform lake sync --rebuild` writes it again"
        )
    with errors(name):
        commits = table.history(table.version() - since) if table.version() > since else []
        # Newest first. An earlier call has undone the commits before its restoration.
        later = list(takewhile(lambda one: one.get(_RESTORED) != f"{mirror} {since}", commits))
        if not later:
            return
        properties = CommitProperties(
            custom_metadata={_MARK: mirror, _RESTORED: f"{mirror} {since}"}
        )
        table.restore(since, commit_properties=properties)
        table.update_incremental()
    foreign = [commit for commit in later if not _is(commit, mirror)]
    if foreign:
        raise UserError(
            f"{_changed_by(foreign[0], name)}; version {since} is restored: run the sync again"
        )


def open_own(name: str, mirror: str, version: int | None) -> DeltaTable:
    """Return a table that this database has written, up to date with all of its commits.

    Raises UserError for any other, and after it has undone commits of another program.
    """
    table = open_table(name)
    if table is None or version is None:
        raise UserError(f"{uri_of(name)} does not exist: run `feature-platform lake sync`")
    check_owner(table, name, mirror)
    undo_later_commits(table, name, version)
    return table


@dataclass(frozen=True)
class File:
    """A file of a table; size in bytes.

    path: from the directory of the table.
    month, part: its partition, in a table of the mirror.
    """

    path: str
    month: str
    part: int
    rows: int
    size: int


def files(
    table: DeltaTable,
    uri: str,
    months: Sequence[str] | None = None,
    parts: Iterable[int] | None = None,
) -> list[File]:
    """Return the files of a table's version, in the order of months; all, or of some partitions."""
    with errors_at(uri):
        added = pa.table(table.get_add_actions(flatten=True))
    found = pa.table(
        {
            "path": added["path"],
            "month": added[f"partition.{MONTH}"],
            "part": added[f"partition.{PART}"],
            "rows": added["num_records"],
            "size": added["size_bytes"],
        }
    )
    if months is not None:
        found = found.filter(pc.is_in(found["month"], pa.array(months, pa.string())))
    if parts is not None:
        found = found.filter(pc.is_in(found["part"], pa.array(list(parts), found["part"].type)))
    return [File(**one) for one in found.sort_by("month").to_pylist()]


def recently_written(
    table: DeltaTable, uri: str, time: str, age: timedelta
) -> dict[tuple[str, int], tuple[datetime, datetime] | None]:
    """Return the days of the files that are at most so much older than a table's newest one.

    They are given by partition: the start of the first day and the end of the last one, None where
    a file does not note its times.
    """
    with errors_at(uri):
        added = pa.table(table.get_add_actions(flatten=True))
    names = [f"partition.{MONTH}", f"partition.{PART}", "modification_time"]
    names += [name for name in (f"min.{time}", f"max.{time}") if name in added.column_names]
    spans: dict[tuple[str, int], tuple[datetime, datetime] | None] = {}
    rows = [tuple(row.values()) for row in added.select(names).to_pylist()]
    oldest = max((row[2] for row in rows), default=0) - age // timedelta(milliseconds=1)
    for month, part, written, *times in rows:
        if written < oldest:
            continue
        known = spans.get((month, part), ())
        if len(times) < 2 or None in times or known is None:
            spans[month, part] = None
            continue
        first, last = (
            moment.replace(hour=0, minute=0, second=0, microsecond=0) for moment in times
        )
        days = [first, last + DAY, *known]
        spans[month, part] = min(days), max(days)
    return spans


def filesystem(uri: str, of_table: Sequence[File]) -> FileSystem:
    """Return the file system of a table's directory, with the known sizes of some files."""
    if not is_remote(uri):
        return SubTreeFileSystem(uri, LocalFileSystem())
    sizes = {file.path: file.size for file in of_table}
    return PyFileSystem(DeltaStorageHandler(uri, storage_options(uri), sizes))


def is_remote(uri: str) -> bool:
    """Return whether a table is in an object store."""
    return "://" in uri


def delete_old_files(table: DeltaTable, name: str) -> int:
    """Delete the files that no version of the last week has; return their number."""
    with errors(name):
        ours = _ours(mirror_of(table))
        deleted = len(table.vacuum(dry_run=False, commit_properties=ours))
        table.update_incremental()
        return deleted


def damaged_files(table: DeltaTable, name: str) -> list[File]:
    """Return the files of a table in a directory that are lost, or have another size."""
    uri = uri_of(name)
    if is_remote(uri):
        return []
    return [file for file in files(table, uri) if _size(Path(uri, file.path)) != file.size]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def forget_lost_files(table: DeltaTable, name: str) -> int:
    """Remove files from a table that are lost or damaged; return their number."""
    with errors(name):
        for file in damaged_files(table, name):
            Path(uri_of(name), file.path).unlink(missing_ok=True)
        ours = _ours(mirror_of(table))
        lost = table.repair(commit_properties=ours)["files_removed"]
        table.update_incremental()
        return len(lost)


def partitions(table: DeltaTable, name: str) -> list[dict[str, str]]:
    """Return the partitions that have rows."""
    with errors(name):
        return list(table.partitions())


def storage_options(uri: str) -> dict[str, str] | None:
    """Return the options for an object store, which reads its credentials from the environment."""
    return dict(_REMOTE) if is_remote(uri) else None


def _changed_by(commit: dict[str, Any], name: str) -> str:
    """Return the part of an error that names the commit of another program."""
    operation = commit.get("operation", "of no known kind")
    return f"{uri_of(name)}: another program changed it (version {commit['version']}, {operation})"


def _is(commit: dict[str, Any], mirror: str) -> bool:
    """Return whether a mirror made a commit."""
    return commit.get(_MARK) == mirror


def _ours(mirror: str) -> CommitProperties:
    return CommitProperties(custom_metadata={_MARK: mirror})
