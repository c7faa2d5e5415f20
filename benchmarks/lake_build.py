"""The whole history of a view from the lake, beside the full build in the database."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from functools import partial
from pathlib import Path

import psutil

from benchmarks.bars import DAY, create_generator, load_bars, refresh, settle
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Workbench,
    environment,
    interleave,
    queries,
    ratio_of_medians,
    require,
    require_exact,
)
from benchmarks.views import SAME, WIDE
from feature_platform.lake.bars import newest_bars
from feature_platform.lake.build import build
from feature_platform.lake.history import take_history
from feature_platform.lake.sync import sync
from feature_platform.settings import PREFIX
from feature_platform.views import FeatureView, catalog

DAYS = 365


def run(bench: Workbench) -> Result:
    """Measure processor seconds of both, and of taking the build into the database."""
    symbols = bench.scaled(4, at_least=2)
    days = bench.scaled(DAYS, at_least=2)
    rows = symbols * days * DAY
    folder = Path(tempfile.mkdtemp(prefix="feature_platform-"))
    try:
        with (
            bench.database("lake_build") as connection,
            environment(
                **{f"{PREFIX}DATABASE_URL": connection.info.dsn, f"{PREFIX}LAKE": str(folder)}
            ),
        ):
            bench.show(f"{symbols} symbols, {days} days")
            create_generator(connection)
            load_bars(connection, range(1, symbols + 1), range(days * DAY))
            refresh(connection)
            settle(connection)
            list(sync(connection, ["ohlcv_1m"]))
            found = [_measured(bench, connection, view, folder, rows) for view in (SAME, WIDE)]
    finally:
        shutil.rmtree(folder)
    return Result(
        ratios=[ratio for one in found for ratio in one.ratios],
        figures={"rows": rows}
        | {name: value for one in found for name, value in one.figures.items()},
        seconds={name: times for one in found for name, times in one.seconds.items()},
    )


def _measured(
    bench: Workbench, connection: Connection, view: FeatureView, folder: Path, rows: int
) -> Result:
    uri = str(folder / view.name)
    seconds = interleave(
        {
            "database": partial(_in_the_database, connection, view, rows),
            "lake": partial(_from_the_lake, view, uri, rows),
            "take": partial(_take, connection, view, uri, rows),
        },
        bench.rounds(3),
    )
    what = f"{view.name}, {len(view.columns)} columns"
    return Result(
        ratios=[
            Ratio(
                f"{what}: rows a processor second from the lake, times those of the full build",
                ratio_of_medians(seconds["database"], seconds["lake"]),
                at_least=5,
            ),
            Ratio(
                f"{what}: build and history taken from it, part of the full build's time",
                (statistics.median(seconds["lake"]) + statistics.median(seconds["take"]))
                / statistics.median(seconds["database"]),
            ),
        ],
        figures={
            f"{view.name}, {name}: rows a processor second": rows / statistics.median(taken)
            for name, taken in seconds.items()
        },
        seconds={f"{view.name}, {name}": taken for name, taken in seconds.items()},
    )


def _in_the_database(connection: Connection, view: FeatureView, rows: int) -> float:
    """Build the history by one session; return the processor seconds of its server process."""
    _drop(connection, view)
    catalog.apply(connection, [view])
    server = psutil.Process(connection.info.backend_pid)
    before = _processor(server)
    require(rows, catalog.refresh_views(connection, name=view.name), "rows of the full build")
    return _processor(server) - before


def _from_the_lake(view: FeatureView, uri: str, rows: int) -> float:
    """Build by one worker process; return the processor seconds of it and of this process."""
    own = psutil.Process()
    before = _processor(own)
    require(rows, build(view, newest_bars(), uri, workers=1).rows, "rows from the lake")
    return _processor(own) - before


def _take(connection: Connection, view: FeatureView, uri: str, rows: int) -> float:
    """Take the build as the history; return the processor seconds of both processes."""
    build(view, newest_bars(), uri)
    _drop(connection, view)
    catalog.apply(connection, [view])
    server, own = psutil.Process(connection.info.backend_pid), psutil.Process()
    before = _processor(server) + _processor(own)
    taken = take_history(connection, view, uri)
    seconds = _processor(server) + _processor(own) - before
    require((rows, 0), (taken.rows, taken.left), "rows taken and left")
    require_exact(connection)
    return seconds


def _processor(process: psutil.Process) -> float:
    """Return the processor seconds of a process, and of its children that have ended."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _drop(connection: Connection, view: FeatureView) -> None:
    if catalog.list_views(connection, view.name):
        catalog.drop(connection, view.name)
    connection.execute(queries["checkpoint"])
