"""A build of a feature view from the lake: a Delta table of its rows, with its declaration."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_platform.errors import UserError
from feature_platform.lake import delta
from feature_platform.lake.bars import DAY, LakeBars, Span
from feature_platform.lake.columnar import check_aggregates
from feature_platform.lake.engines import Engine, run
from feature_platform.lake.tasks import Computed, Task, inner_columns, schema_of, tasks_of
from feature_platform.near_names import near_names
from feature_platform.views.expressions import walk
from feature_platform.views.view import FeatureView

if TYPE_CHECKING:
    from deltalake import DeltaTable

Progress = Callable[[int, int], None]

_KEY = "feature_platform_build"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Description:
    """The description of a build, which its commit carries.

    every, offset: in minutes.
    columns: the expression of each column; inner: of each value that the database stores beside
        the view.
    bars: the version of the lake's bars that were read.
    start, end: rows with start <= bucket < end were built, in microseconds since the epoch.
    """

    view: str
    every: int
    offset: int
    columns: dict[str, str]
    inner: dict[str, str]
    bars: LakeBars
    symbols: list[str]
    start: int
    end: int

    def difference(self, view: FeatureView) -> str | None:
        """Return how the declaration of a view differs from the built one, in words."""
        declared = _declaration(view)
        if (self.every, self.offset) != (declared["every"], declared["offset"]):
            return "its buckets are others"
        if list(self.columns) != list(declared["columns"]):
            return f"it has the columns {', '.join(self.columns)}"
        for name, source in declared["columns"].items():
            if self.columns[name] != source:
                return f"{name} was {self.columns[name]}, and is {source}"
        # Another version of the platform may store other values beside a view.
        if self.inner != declared["inner"]:
            return "another version of the platform built it"
        return None


@dataclass
class Built:
    """The result of a build.

    wide: the columns whose exact sums took more than 128 bits, with their symbols.
    """

    uri: str
    duration: timedelta = timedelta()
    rows: int = 0
    symbols: int = 0
    tasks: int = 0
    wide: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def build(
    view: FeatureView,
    bars: LakeBars,
    uri: str,
    *,
    engine: Engine = "duckdb",
    symbols: Sequence[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Built:
    """Compute the rows of a view from the lake's bars, and write them as a Delta table.

    uri: of the table, which is written in one commit. One that has a build of the same declaration
        is replaced.
    symbols, start, end: by default all that the lake has, as whole UTC days.
    Raises UserError, and writes nothing, where the view needs the database, or the table has
    something else.
    """
    check_aggregates(view)
    _check_place(view, uri)
    spans = bars.spans()
    chosen = _chosen(spans, symbols)
    # The lake has whole days of all symbols.
    complete = max(-(-(one.last + 1) // DAY) * DAY for one in spans)
    low = 0 if start is None else _micro(start)
    high = complete if end is None else min(complete, _micro(end))
    if not any(max(one.first, low) < min(one.last + 1, high) for one in chosen):
        raise UserError("the lake has no bars of these symbols between --start and --end")
    built = Built(uri, symbols=len(chosen))
    began = time.monotonic()
    tasks = list(tasks_of(view, bars, chosen, low, high))
    description = Description(
        **_declaration(view),
        bars=bars,
        symbols=[one.symbol for one in chosen],
        start=low,
        end=high,
    )
    results = run(engine, tasks, workers)
    _write(uri, description, view, _noted(results, tasks, built, view, progress))
    built.duration = timedelta(seconds=time.monotonic() - began)
    return built


def builds_of() -> str:
    """Return the directory of the builds in the lake; no view has its name."""
    return delta.uri_of("_builds")


def describe(uri: str) -> tuple[Description, DeltaTable]:
    """Return the description of the newest build in a table, and its version of the table.

    Raises UserError where there is none.
    """
    table = delta.open_at(uri)
    if table is None:
        raise UserError(f"{uri} has no build: make one with `feature-platform views build`")
    with delta.errors_at(uri):
        for commit in table.history():
            if _KEY in commit:
                found = json.loads(commit[_KEY])
                found["bars"] = LakeBars(**found["bars"])
                table.load_as_version(commit["version"])
                return Description(**found), table
    raise UserError(f"{uri} is a Delta table, but not a build of a view: choose another directory")


def _write(
    uri: str, description: Description, view: FeatureView, results: Iterator[Computed]
) -> None:
    """Write rows in one commit, while they are computed."""
    failed: list[BaseException] = []
    first = next(results, None)  # the engine starts in this thread, not in one of the writer's

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for one in chain([] if first is None else [first], results):
                yield from one.rows.to_batches()
        except BaseException as error:
            failed.append(error)
            raise

    try:
        delta.write_at(
            uri,
            pa.RecordBatchReader.from_batches(schema_of(view), batches()),
            view.name,
            view.description,
            {_KEY: json.dumps(asdict(description))},
        )
    except UserError:
        if failed:  # the writer reports an error of its source in its own words
            raise failed[0] from None
        raise


def _check_place(view: FeatureView, uri: str) -> None:
    if delta.open_at(uri) is None:
        return
    found, _ = describe(uri)
    difference = found.difference(view) if found.view == view.name else f"it is {found.view}"
    if difference is not None:
        raise UserError(
            f"{uri} has a build of another declaration: {difference}; choose another --output, or"
            " delete it"
        )


def _declaration(view: FeatureView) -> dict[str, Any]:
    minute = timedelta(minutes=1)
    return {
        "view": view.name,
        "every": view.width // minute,
        "offset": view.shift // minute,
        "columns": {name: str(one) for name, one in view.columns.items()},
        "inner": {name: str(one) for name, one in inner_columns(view).items()},
    }


def _chosen(spans: Sequence[Span], symbols: Sequence[str] | None) -> list[Span]:
    if not spans:
        raise UserError("the lake has no bars yet: `feature-platform lake sync`")
    known = {one.symbol: one for one in spans}
    for symbol in symbols or ():
        if symbol not in known:
            raise UserError(f"the lake has no bars of {symbol!r}{near_names(symbol, list(known))}")
    return [known[symbol] for symbol in sorted(set(symbols or known))]


def _noted(
    results: Iterator[Computed],
    tasks: Sequence[Task],
    built: Built,
    view: FeatureView,
    progress: Progress | None,
) -> Iterator[Computed]:
    nodes = {name: {node.key for node in walk(one)} for name, one in view.columns.items()}
    for one in results:
        built.tasks += 1
        built.rows += one.rows.num_rows
        for key, symbols in one.wide.items():
            for name, keys in nodes.items():
                if key in keys:
                    built.wide[name] |= symbols
        if progress is not None:
            progress(built.tasks, len(tasks))
        yield one


def _micro(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND
