"""A month of rows as they were known, beside a plain read of the stored rows.

Rows are numbered as a live refresh of every minute would number them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.bars import DAY, create_generator, load_bars, moment, refresh
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Side,
    Workbench,
    environment,
    interleave,
    queries,
    ratio_of_medians,
    require,
    timed,
)
from feature_platform import read_features
from feature_platform.settings import PREFIX

SYMBOLS = 10
MONTH = 30 * DAY
EVERY_NTH = 20  # row was corrected an hour after it was stored
DELAY = "2 seconds after close"


def run(bench: Workbench) -> Result:
    """Measure both ways of reading known rows; all read the same month of some symbols."""
    month = bench.scaled(MONTH, at_least=DAY)
    symbols = [f"SYM{number:04}/USDT" for number in range(1, SYMBOLS + 1)]
    with (
        bench.database("as_of") as connection,
        environment(**{f"{PREFIX}DATABASE_URL": connection.info.dsn}),
    ):
        bench.show(f"{SYMBOLS} symbols, {2 * month:,} minutes, of which half are read")
        create_generator(connection)
        load_bars(connection, range(1, SYMBOLS + 1), range(2 * month))
        refresh(connection)
        number_as_if_live(connection, 2 * month, EVERY_NTH)

        def side(as_of: str | None, rows: int) -> Side:
            def measure() -> float:
                found: list[int] = []

                def read() -> None:
                    frame = read_features(
                        symbols, moment(month), moment(2 * month), as_="arrow", as_of=as_of
                    )
                    found.append(frame.num_rows)

                seconds = timed(read)
                require([rows], found, "rows read")
                return seconds

            return measure

        # The last minute before the middle of the month is number month + month / 2.
        middle = moment(month + month // 2).isoformat()
        sides: dict[str, Callable[[], float]] = {
            "stored": side(None, SYMBOLS * month),
            "as of now": side(moment(2 * month + 61).isoformat(), SYMBOLS * month),
            "as of the middle": side(middle, SYMBOLS * (month // 2 - 1)),
            "after close": side(DELAY, SYMBOLS * month),
        }
        for measure in sides.values():
            measure()
        seconds = interleave(sides, bench.rounds(7))
    stored = seconds["stored"]
    what = f"a month of {SYMBOLS} symbols, {SYMBOLS * month:,} rows"
    return Result(
        ratios=[
            Ratio(
                f"{what}: as of a time that no later change reaches, time of the plain read",
                ratio_of_medians(seconds["as of now"], stored),
                at_most=1.4,
            ),
            Ratio(
                f"{what}: {DELAY}, one of {EVERY_NTH} rows corrected, time of the plain read",
                ratio_of_medians(seconds["after close"], stored),
            ),
        ],
        figures={
            "rows": SYMBOLS * month,
            "rows/s, as of now": SYMBOLS * month / statistics.median(seconds["as of now"]),
        },
        seconds=seconds,
    )


def number_as_if_live(connection: Connection, minutes: int, corrected: int) -> None:
    """Number all rows as a refresh of every minute would, and add versions of corrected ones.

    corrected: one of so many rows was corrected an hour after it was stored.
    """
    given = {"minutes": minutes, "corrected": corrected}
    with connection.transaction():
        for query in (
            "as_if_live_rows",
            "as_if_live_empty",
            "as_if_live_refreshes",
            "as_if_live_store",
            "as_if_live_versions",
        ):
            connection.execute(queries[query], given)
    connection.execute(queries["as_if_live_settle"])
