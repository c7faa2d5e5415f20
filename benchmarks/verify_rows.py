"""The speed of verify, beside the build of the same rows; there is no target."""

from __future__ import annotations

import statistics

from benchmarks.bars import DAY
from benchmarks.full_build import build, load
from benchmarks.harness import (
    Ratio,
    Result,
    Workbench,
    interleave,
    ratio_of_medians,
    require,
    require_exact,
    timed,
)

DAYS = 10


def run(bench: Workbench) -> Result:
    """Measure a build and a verification of the same rows."""
    symbols = bench.scaled(30)
    rows = symbols * DAYS * DAY
    with bench.database("verify") as connection:
        bench.show(f"{symbols} symbols, {DAYS} days")
        load(connection, symbols, DAYS)
        build(connection)

        def prove() -> float:
            proven: list[int] = []
            seconds = timed(lambda: proven.append(require_exact(connection)))
            require([rows], proven, "rows verified")
            return seconds

        seconds = interleave(
            {"build, one session": lambda: build(connection), "verify": prove}, bench.rounds(3)
        )
    built, proven = seconds["build, one session"], seconds["verify"]
    return Result(
        ratios=[
            Ratio(f"verify, {rows:,} rows: time of the build", ratio_of_medians(proven, built))
        ],
        figures={
            "rows": rows,
            "rows/s, build": rows / statistics.median(built),
            "rows/s, verify": rows / statistics.median(proven),
        },
        seconds=seconds,
    )
