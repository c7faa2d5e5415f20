"""A year of one symbol, and of 20, from the lake into Arrow, beside the same rows by ADBC."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
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

SYMBOLS = 20
YEAR = 365 * DAY


def run(bench: Workbench) -> Result:
    """Measure sync, verify and reads; both sides read the same rows."""
    minutes = bench.scaled(YEAR, at_least=DAY)
    symbols = bench.scaled(SYMBOLS, at_least=2)
    cpu: dict[str, list[float]] = defaultdict(list)
    with (
        bench.database("lake") as connection,
        tempfile.TemporaryDirectory() as lake,
        environment(
            **{f"{PREFIX}DATABASE_URL": connection.info.dsn, f"{PREFIX}LAKE": f"{lake}/lake"}
        ),
    ):
        bench.show(f"{symbols} symbols, {minutes:,} minutes")
        create_generator(connection)
        load_bars(connection, range(1, symbols + 1), range(minutes))
        refresh(connection)
        settle(connection)
        written = timed(lambda: list(sync(connection, ["features_1m"])))
        compared = timed(lambda: list(verify(connection, ["features_1m"])))
        list(compact(connection, ["features_1m"]))
        (status,) = lake_status(connection)
        seconds = interleave(_sides(symbols, minutes, cpu), bench.rounds(5))
    rows = symbols * minutes
    return Result(
        ratios=[
            ratio
            for what, count in (("a symbol", 1), (f"{symbols} symbols", symbols))
            for ratio in _ratios(what, count * minutes, seconds, cpu)
        ],
        figures={
            "rows/s, sync": rows / written,
            "rows/s, verify": rows / compared,
            "bytes a row": status.size / max(1, status.rows),
            "files": status.files,
        },
        seconds=seconds,
    )


def _ratios(
    what: str, rows: int, seconds: dict[str, list[float]], cpu: dict[str, list[float]]
) -> list[Ratio]:
    lake, database = f"{what}, lake", f"{what}, ADBC"
    return [
        Ratio(
            f"{what}, {rows:,} rows: millions of rows a processor second",
            rows / statistics.median(cpu[lake]) / 1e6,
            at_least=8,
        ),
        Ratio(
            f"{what}: times faster than ADBC", ratio_of_medians(seconds[database], seconds[lake])
        ),
    ]


def _sides(symbols: int, minutes: int, cpu: dict[str, list[float]]) -> dict[str, Side]:
    window: dict[str, Any] = {"start": FIRST, "end": moment(minutes), "as_": "arrow"}
    names = [f"SYM{number:04}/USDT" for number in range(1, symbols + 1)]

    def measured(side: str, wanted: str | list[str], rows: int, source: str) -> float:
        place: dict[str, Any] = {"source": source}
        began, used = time.perf_counter(), time.process_time()
        found = read_features(wanted, **place, **window).num_rows
        cpu[side].append(time.process_time() - used)
        require(rows, found, f"rows of {side}")
        return time.perf_counter() - began

    return {
        side: partial(measured, side, wanted, rows, source)
        for what, wanted, rows in (
            ("a symbol", names[0], minutes),
            (f"{symbols} symbols", names, symbols * minutes),
        )
        for side, source in ((f"{what}, lake", "lake"), (f"{what}, ADBC", "database"))
    }
