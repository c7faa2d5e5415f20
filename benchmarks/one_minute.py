"""One new minute of all symbols, beside a recomputation of the last day and a longer history.

Both times are those of the refresh alone: the bars are stored before either begins.
"""

from __future__ import annotations

from benchmarks.bars import DAY, create_generator, insert_bars, load_bars, moment, refresh, settle
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Workbench,
    interleave,
    queries,
    ratio_of_medians,
    require,
    require_exact,
    timed,
    value,
)

DAYS = 3
LONGER = 10  # times the history


class History:
    """Keep a database of some symbols and days up to date, minute by minute."""

    def __init__(self, connection: Connection, symbols: int, days: int) -> None:
        self.connection = connection
        self.symbols = symbols
        self.first_new = self.next = days * DAY
        self.insert_seconds: list[float] = []
        create_generator(connection)
        load_bars(connection, self._all_symbols, range(self.next))
        refresh(connection)
        settle(connection)

    @property
    def _all_symbols(self) -> range:
        return range(1, self.symbols + 1)

    def add_minute(self) -> float:
        """Store the bars of the next minute; return the seconds of the refresh."""
        minute = range(self.next, self.next + 1)
        self.insert_seconds.append(
            timed(lambda: insert_bars(self.connection, self._all_symbols, minute))
        )
        self.next += 1
        seconds = timed(lambda: refresh(self.connection))
        if self.next % 5 == 0:
            self.connection.execute(queries["vacuum_small_tables"])
        return seconds

    def recompute_last_day(self) -> float:
        """Recompute the last day by window functions; return the seconds."""
        newest = {"newest_minute": self.next - 1}
        seconds = timed(
            lambda: self.connection.execute(queries["window_functions_of_last_day"], newest)
        )
        require(
            self.symbols * DAY, value(self.connection, "count_last_day"), "rows of the last day"
        )
        if self.next == self.first_new:
            require(0, value(self.connection, "count_other_values"), "rows that differ")
        self.connection.execute(queries["drop_last_day"])
        return seconds

    def check(self) -> None:
        """Raise WrongResultError unless all new minutes have their exact features."""
        rows = require_exact(self.connection, start=moment(self.first_new))
        require((self.next - self.first_new) * self.symbols, rows, "rows of new minutes")


def run(bench: Workbench) -> Result:
    """Measure the refresh of one new minute."""
    symbols = bench.scaled(1000)
    with bench.database("one_minute") as connection:
        bench.show(f"{symbols} symbols, {DAYS} days")
        many = History(connection, symbols, DAYS)
        seconds = _beside_recomputation(bench, many)
    few = bench.scaled(100)
    with bench.database("short") as connection, bench.database("long") as other:
        bench.show(f"{few} symbols, {DAYS} days")
        short = History(connection, few, DAYS)
        bench.show(f"{few} symbols, {DAYS * LONGER} days")
        long = History(other, few, DAYS * LONGER)
        seconds |= _beside_longer_past(bench, short, long)
    return Result(
        ratios=[
            Ratio(
                f"one new minute, {symbols} symbols: times less than the last day again",
                ratio_of_medians(seconds["window functions, last day"], seconds["new minute"]),
                at_least=50,
            ),
            Ratio(
                f"one new minute, {few} symbols: time at {LONGER} times the history",
                ratio_of_medians(
                    seconds["new minute, long past"], seconds["new minute, short past"]
                ),
                at_most=1.3,
            ),
        ],
        figures={"symbols": symbols, "days": DAYS, "symbols of the two pasts": few},
        seconds=seconds,
    )


def _beside_recomputation(bench: Workbench, history: History) -> dict[str, list[float]]:
    recomputed: list[float] = []
    refreshed: list[float] = []
    for _ in range(bench.rounds(5)):
        recomputed.append(history.recompute_last_day())
        refreshed += [history.add_minute() for _ in range(5)]
    history.check()
    return {
        "window functions, last day": recomputed,
        "new minute": refreshed,
        "storing the new bars": history.insert_seconds,
    }


def _beside_longer_past(bench: Workbench, short: History, long: History) -> dict[str, list[float]]:
    seconds = interleave(
        {"new minute, short past": short.add_minute, "new minute, long past": long.add_minute},
        bench.rounds(60),
    )
    for history in (short, long):
        history.check()
    return seconds
