"""A full build of the features, beside an INSERT of the finished rows."""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor

from benchmarks.bars import DAY, create_generator, load_bars, refresh
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Workbench,
    another_session,
    interleave,
    queries,
    ratio_of_medians,
    require,
    require_exact,
    timed,
    value,
)

DAYS = 10


def run(bench: Workbench) -> Result:
    """Measure a full build by one session, and by two at once."""
    symbols = bench.scaled(100, at_least=2)
    rows = symbols * DAYS * DAY
    with bench.database("full_build") as connection, another_session(connection) as other:
        bench.show(f"{symbols} symbols, {DAYS} days")
        load(connection, symbols, DAYS)

        def insert_finished() -> float:
            _forget_features(connection)
            return timed(lambda: connection.execute(queries["insert_finished"]))

        def one_session() -> float:
            return build(connection)

        def two_sessions() -> float:
            return build(connection, other)

        checked = 0
        for side in (one_session, two_sessions):
            side()
            checked += require_exact(connection)
        require(2 * rows, checked, "rows that were built and verified")
        connection.execute(queries["keep_finished"])
        connection.execute(queries["analyze_finished"])
        seconds = interleave(
            {
                "insert of the finished rows": insert_finished,
                "build, one session": one_session,
                "build, two sessions": two_sessions,
            },
            bench.rounds(3),
        )
    plain = seconds["insert of the finished rows"]
    one, two = seconds["build, one session"], seconds["build, two sessions"]
    name = f"full build, {symbols} symbols x {DAYS} days"
    return Result(
        ratios=[
            Ratio(f"{name}: time of plain INSERTs", ratio_of_medians(one, plain), at_most=4),
            Ratio(f"{name}, two sessions: the same", ratio_of_medians(two, plain), at_most=2.5),
        ],
        figures={
            "rows": rows,
            "rows/s, insert": rows / statistics.median(plain),
            "rows/s, one session": rows / statistics.median(one),
            "rows/s, two sessions": rows / statistics.median(two),
        },
        seconds=seconds,
    )


def load(connection: Connection, symbols: int, days: int) -> None:
    """Load bars that have no features yet."""
    create_generator(connection)
    load_bars(connection, range(1, symbols + 1), range(days * DAY))
    connection.execute(queries["settle"])
    connection.execute(queries["keep_marks"])


def build(*sessions: Connection) -> float:
    """Build all features again in some parallel sessions; return the seconds of the slowest."""
    _forget_features(sessions[0])
    sessions[0].execute(queries["mark_again"])
    with ThreadPoolExecutor(len(sessions)) as pool:
        return timed(lambda: list(pool.map(refresh, sessions)))


def _forget_features(connection: Connection) -> None:
    connection.execute(queries["forget_features"])
    connection.execute(queries["checkpoint"])
    require(0, value(connection, "count_features"), "rows before a build")
