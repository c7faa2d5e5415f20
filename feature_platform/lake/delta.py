"""Delta tables of the lake: open, create and replace, with errors in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa

from feature_platform.errors import UserError, one_line
from feature_platform.lake.tables import MONTH, PART
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
except ImportError:
    raise UserError("the lake needs deltalake: pip install 'feature_platform[lake]'") from None

# The layout of the tables: a change of their partitions or columns of the platform raises it.
LAYOUT = 1
_DESCRIPTION = re.compile(
    r"feature_platform lake, layout (?P<layout>\d+)"
    r"(, parts (?P<parts>\d+), mirror (?P<mirror>\S+))?"
)
_MARK = "feature_platform"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# An object store that does not answer is an error after about this time, not after minutes.
_REMOTE = {"timeout": "20s", "connect_timeout": "5s", "max_retries": "4", "retry_timeout": "40s"}

# A row group holds a month of one symbol, so that a reader of one symbol decodes little else. LZ4
# is read in 0.7 of the time of ZSTD, and has 1.4 times its bytes.
_WRITER = WriterProperties(
    compression="LZ4_RAW",
    max_row_group_size=45_000,
    default_column_properties=ColumnProperties(dictionary_enabled=False),
    column_properties={"symbol": ColumnProperties(dictionary_enabled=True)},
)


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
        raise UserError(f"{uri}: {_text(error)}") from None


def _text(error: Exception) -> str:
    """Return the text of an error without the colours that the library gives it."""
    return one_line(_COLOUR.sub("", str(error)))


def open_at(uri: str, version: int | None = None) -> DeltaTable | None:
    """Return a version of any Delta table, by default the newest; None where there is no table."""
    with errors_at(uri):
        if not DeltaTable.is_deltatable(uri, storage_options(uri)):
            return None
        return DeltaTable(uri, version, storage_options=storage_options(uri))


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


def open_table(name: str) -> DeltaTable | None:
    """Return a table of the lake, None where there is none.

    Raises UserError for a table that this version of the platform cannot read, or that is none
    of the platform's.
    """
    uri = uri_of(name)
    table = open_at(uri)
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
    if "://" not in uri:
        Path(uri).mkdir(parents=True, exist_ok=True)
    with errors(name):
        return DeltaTable.create(
            uri,
            schema,
            mode="overwrite",
            partition_by=[MONTH, PART],
            name=name,
            description=f"feature_platform lake, layout {LAYOUT}, parts {parts}, mirror {mirror}",
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


def undo_foreign_commits(table: DeltaTable, name: str, since: int) -> None:
    """Undo the commits of other programs after a version, and raise UserError if there are some.

    A commit of the platform after it is one of a sync that died; it is repeated.
    """
    mirror = mirror_of(table)
    with errors(name):
        commits = table.history(table.version() - since) if table.version() > since else []
        # Newest first. An earlier call has undone the commits before its restoration.
        later = takewhile(
            lambda one: not (_is(one, mirror) and one["operation"] == "RESTORE"), commits
        )
        foreign = [commit for commit in later if not _is(commit, mirror)]
        if not foreign:
            return
        table.restore(since, commit_properties=_ours(mirror))
    newest = foreign[0]
    raise UserError(
        f"{uri_of(name)}: another program changed it (version {newest['version']},"
        f" {newest.get('operation', 'of no known kind')}); version {since} is restored: run the"
        " sync again"
    )


def open_own(name: str, mirror: str, version: int | None) -> DeltaTable:
    """Return a table that this database has written, up to date with all of its commits.

    Raises UserError for any other, and after it has undone commits of another program.
    """
    table = open_table(name)
    if table is None or version is None:
        raise UserError(f"{uri_of(name)} does not exist: run `feature-platform lake sync`")
    check_owner(table, name, mirror)
    undo_foreign_commits(table, name, version)
    return table


@dataclass(frozen=True)
class File:
    """A file of a table; size in bytes."""

    month: str
    part: int
    rows: int
    size: int


def files(table: DeltaTable, name: str) -> list[File]:
    """Return the files of a table's newest version."""
    with errors(name):
        added = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    return [
        File(
            one[f"partition.{MONTH}"],
            one[f"partition.{PART}"],
            one["num_records"],
            one["size_bytes"],
        )
        for one in added
    ]


def delete_old_files(table: DeltaTable, name: str) -> int:
    """Delete the files that no version of the last week has; return their number."""
    with errors(name):
        ours = _ours(mirror_of(table))
        deleted = len(table.vacuum(dry_run=False, commit_properties=ours))
        table.update_incremental()
        return deleted


def forget_lost_files(table: DeltaTable, name: str) -> int:
    """Remove files from a table that the lake does not have any more; return their number."""
    with errors(name):
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
    return dict(_REMOTE) if "://" in uri else None


def _is(commit: dict[str, Any], mirror: str) -> bool:
    """Return whether a mirror made a commit."""
    return commit.get(_MARK) == mirror


def _ours(mirror: str) -> CommitProperties:
    return CommitProperties(custom_metadata={_MARK: mirror})
