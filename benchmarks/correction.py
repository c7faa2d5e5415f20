"""The repair behind one corrected bar, beside a bare UPDATE of the rows that it dirties.

The cost of both depends on the history of the rows, so three kinds are measured: rows just stored
and not changed since; the same after a checkpoint, when the first change of a page writes the whole
page to the log, as for old rows; and, without a target, rows that were corrected many times with
vacuums in between, where new versions fit into the same page and a bare UPDATE changes no index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat

from benchmarks.bars import DAY, create_generator, load_bars, moment, refresh
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
)

DAYS = 7  # of the symbols that are corrected
OTHERS_DAYS = 1
AGE = 5  # days, of the corrected bar
MINUTE = (DAYS - AGE) * DAY
BY = 12.34  # volume
WARM_UP = 3  # repetitions that do not count: a session's first ones plan its statements
NEW_SESSIONS = 3

BARE, REPAIR = "bare update", "refresh"


def run(bench: Workbench) -> Result:
    """Measure the repair of 1,440 rows."""
    rounds = bench.rounds(20)
    warm_up = min(WARM_UP, rounds)
    corrected = range(1, 2 * (warm_up + rounds + rounds) + NEW_SESSIONS + 2 + 1)
    symbols = bench.scaled(1000, at_least=len(corrected) + 1)
    others = range(corrected.stop, symbols + 1)
    with bench.database("correction") as connection:
        bench.show(f"{len(corrected)} symbols of {DAYS} days, {len(others)} of {OTHERS_DAYS}")
        create_generator(connection)
        load_bars(connection, corrected, range(DAYS * DAY))
        load_bars(connection, others, range((DAYS - OTHERS_DAYS) * DAY, DAYS * DAY))
        connection.execute(queries["checkpoint"])  # so that none comes by itself too early
        refresh(connection)
        _prepare(connection, corrected)
        connection.execute(queries["settle"])
        corrections = Corrections(connection)
        untouched = iter(corrected)
        corrections.measure(untouched, untouched, warm_up)
        stored = corrections.measure(untouched, untouched, rounds)
        connection.execute(queries["checkpoint"])
        written = corrections.measure(untouched, untouched, rounds)
        first = [_first_of_session(connection, next(untouched)) for _ in range(NEW_SESSIONS)]
        one, other = repeat(next(untouched)), repeat(next(untouched))
        corrections.measure(one, other, warm_up, between=corrections.vacuum)
        worn = corrections.measure(one, other, rounds, between=corrections.vacuum)
        _check(connection, corrected)
    name = f"correction of a bar {AGE} days old, {symbols} symbols"
    kinds = {"": stored, ", after a checkpoint": written, ", rows corrected before": worn}
    return Result(
        ratios=[
            Ratio(
                f"{name}{kind}: time of a bare UPDATE",
                ratio_of_medians(seconds[REPAIR], seconds[BARE]),
                at_most=None if seconds is worn else 3,
            )
            for kind, seconds in kinds.items()
        ],
        figures={"symbols": symbols, "rows": DAY},
        seconds={
            f"{side}{kind}": taken
            for kind, seconds in kinds.items()
            for side, taken in seconds.items()
        }
        | {"refresh, first of its session": first},
    )


class Corrections:
    """Correct a bar of a symbol, or revert the correction, and refresh the affected rows."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._corrected: set[int] = set()

    def measure(
        self,
        bare: Iterator[int],
        repaired: Iterator[int],
        rounds: int,
        between: Callable[[], object] = lambda: None,
    ) -> dict[str, list[float]]:
        """Measure both sides, each on the next of its symbols.

        between: runs before each measurement.
        """

        def update() -> float:
            between()
            return self.update(next(bare))

        def repair() -> float:
            between()
            return self.repair(next(repaired))

        return interleave({BARE: update, REPAIR: repair}, rounds)

    def repair(self, symbol: int) -> float:
        """Correct a bar; return the seconds of the refresh."""
        self._correct(symbol)
        return timed(lambda: refresh(self.connection))

    def update(self, symbol: int) -> float:
        """Correct a bar; return the seconds of an UPDATE of its rows to known values."""
        state = self._correct(symbol)
        execute = self.connection.execute
        execute(queries["forget_marks"])
        execute(queries[f"prepare_{state}_rows"], {"symbol": symbol})
        execute(queries["analyze_prepared_rows"])
        where = {"symbol": symbol, "minute": MINUTE}
        updated: list[int] = []
        # Never prepared: a plan for any symbol overestimates the rows of one symbol.
        seconds = timed(
            lambda: updated.append(execute(queries["bare_update"], where, prepare=False).rowcount)
        )
        require([DAY], updated, "rows updated")
        execute(queries["drop_prepared_rows"])
        return seconds

    def vacuum(self) -> None:
        """Remove the dead rows of the last repair, as autovacuum does."""
        self.connection.execute(queries["vacuum_rows"])

    def _correct(self, symbol: int) -> str:
        """Change the bar; return the name of the prepared rows that are right then."""
        back = symbol in self._corrected
        self._corrected ^= {symbol}
        by = -BY if back else BY
        change = {"symbol": symbol, "minute": MINUTE, "by": by}
        rows = self.connection.execute(queries["correct_bar"], change).rowcount
        require(1, rows, "bars corrected")
        return "original" if back else "corrected"


def _prepare(connection: Connection, symbols: range) -> None:
    """Store the rows before and after each correction, for the bare UPDATE."""
    span = {"first_symbol": symbols[0], "last_symbol": symbols[-1], "minute": MINUTE}
    connection.execute(queries["keep_original_rows"], span)
    connection.execute(queries["work_out_corrected_rows"], span)
    connection.execute(queries["index_prepared_rows"])


def _first_of_session(connection: Connection, symbol: int) -> float:
    """Return the seconds of a repair by a session that has planned nothing yet."""
    with another_session(connection) as new:
        return Corrections(new).repair(symbol)


def _check(connection: Connection, corrected: range) -> None:
    """Raise WrongResultError unless both sides have stored the features of the corrected bars."""
    start, end = moment(MINUTE), moment(MINUTE + DAY)
    rows = require_exact(connection, start=start, end=end)
    require(len(corrected) * DAY, rows, "rows behind the corrections")
