"""A year of one symbol from the lake into Arrow, beside the same rows from the database."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bars import DAY, FIRST, create_generator, load_bars, moment, refresh, settle
from benchmarks.harness import (
    Ratio,
    Result,
    Side,
    Workbench,
    environment,
    interleave,
    ratio_of_medians,
    require,
    timed,
)
from feature_platform import read_features
from feature_platform.lake.compact import compact
from feature_platform.lake.status import lake_status
from feature_platform.lake.sync import sync
from feature_platform.lake.verify import verify
from feature_platform.settings import PREFIX

SYMBOLS = 4
YEAR = 365 * DAY


def run(bench: Workbench) -> Result:
    """Measure sync, verify and reads; both sides read the same rows."""
    minutes = bench.scaled(YEAR, at_least=DAY)
    cpu: list[float] = []
    with (
        bench.database("lake") as connection,
        tempfile.TemporaryDirectory() as lake,
        environment(
            **{f"{PREFIX}DATABASE_URL": connection.info.dsn, f"{PREFIX}LAKE": f"{lake}/lake"}
        ),
    ):
        bench.show(f"{SYMBOLS} symbols, {minutes:,} minutes")
        create_generator(connection)
        load_bars(connection, range(1, SYMBOLS + 1), range(minutes))
        refresh(connection)
        settle(connection)
        written = timed(lambda: list(sync(connection, ["features_1m"])))
        compared = timed(lambda: list(verify(connection, ["features_1m"])))
        list(compact(connection, ["features_1m"]))
        (status,) = lake_status(connection)
        seconds = interleave(_sides(minutes, cpu), bench.rounds(5))
    rows = SYMBOLS * minutes
    what = f"a symbol-year, {minutes:,} rows"
    return Result(
        ratios=[
            Ratio(
                f"{what}: times faster than ADBC",
                ratio_of_medians(seconds["database, by ADBC"], seconds["lake"]),
            ),
        ],
        figures={
            "rows/s a core, read": minutes / statistics.median(cpu),
            "rows/s, sync": rows / written,
            "rows/s, verify": rows / compared,
            "bytes a row": status.size / max(1, status.rows),
            "files": status.files,
        },
        seconds=seconds,
    )


def _sides(minutes: int, cpu: list[float]) -> dict[str, Side]:
    window: dict[str, Any] = {"start": FIRST, "end": moment(minutes), "as_": "arrow"}
    places: dict[str, Any] = {name: {"source": name, **window} for name in ("lake", "database")}

    def read(source: str, times: list[float]) -> Callable[[], float]:
        def measured() -> float:
            began, used = time.perf_counter(), time.process_time()
            rows = read_features("SYM0001/USDT", **places[source]).num_rows
            times.append(time.process_time() - used)
            require(minutes, rows, f"rows of {source}")
            return time.perf_counter() - began

        return measured

    return {"lake": read("lake", cpu), "database, by ADBC": read("database", [])}
