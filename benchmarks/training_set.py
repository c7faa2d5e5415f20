"""A training set as it was known, beside the same join on the stored rows.

Rows are numbered as a live refresh of every minute would number them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks.as_of import number_as_if_live
from benchmarks.bars import DAY, FIRST, create_generator, load_bars, refresh
from benchmarks.harness import (
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
from feature_platform import forward, forward_return, training_set
from feature_platform.settings import PREFIX
from feature_platform.tables import FEATURES
from feature_platform.training import Label
from feature_platform.views import FeatureView, bar, catalog

EVENTS = 1_000_000
SYMBOLS = 100
DAYS = 30
HOURLY = FeatureView("hourly", "1 hour", {"close": bar.close})
COLUMNS = [*(f"features_1m.{name}" for name in FEATURES), "hourly.close"]


def run(bench: Workbench) -> Result:
    """Measure ten features and a label."""
    symbols = bench.scaled(SYMBOLS, at_least=2)
    days = bench.scaled(DAYS, at_least=4)
    count = bench.scaled(EVENTS, at_least=1000)
    labels = {"return_15m": forward_return("15 minutes")}
    stored = {f"stored {name}": forward(name, "0 seconds") for name in COLUMNS}
    seconds: dict[str, list[float]] = {}
    ratios = []
    with (
        bench.database("training_set") as connection,
        environment(**{f"{PREFIX}DATABASE_URL": connection.info.dsn}),
    ):
        bench.show(f"{count:,} events, {symbols} symbols, {days} days")
        create_generator(connection)
        load_bars(connection, range(1, symbols + 1), range(days * DAY))
        refresh(connection)
        catalog.apply(connection, [HOURLY])
        catalog.refresh_views(connection)
        # The rows of the view as if each had been known at once.
        connection.execute(queries["training_set_view"])
        events = _events(count, symbols, days)

        def side(features: list[str], more: dict[str, Label]) -> Side:
            def measure() -> float:
                found: list[pa.Table] = []
                taken = timed(
                    lambda: found.append(training_set(events, features, {**more, **labels}))
                )
                require(2 + len(COLUMNS) + 1, found[0].num_columns, "columns")
                require(0, found[0].column(2).null_count, "events without a row")
                return taken

            return measure

        sides = {"as known": side(COLUMNS, {}), "stored": side([], stored)}
        for corrected, what in ((50, "one of 50 rows"), (1, "all rows")):
            number_as_if_live(connection, days * DAY, corrected)
            sides["stored"]()
            taken = interleave(sides, bench.rounds(3))
            seconds |= {f"{name}, {what} corrected": times for name, times in taken.items()}
            ratios.append(
                Ratio(
                    f"{count:,} events, {len(COLUMNS)} features, {what} corrected: time of the"
                    " same join on the stored rows",
                    ratio_of_medians(taken["as known"], taken["stored"]),
                    at_most=3 if corrected > 1 else None,
                )
            )
    return Result(
        ratios=ratios,
        figures={"events": count, "rows": symbols * days * DAY},
        seconds=seconds,
    )


def _events(count: int, symbols: int, days: int) -> pa.Table:
    """Return random events after the warm-up."""
    rng = np.random.default_rng(1)
    minute = 60 * 1_000_000
    begin = int(FIRST.timestamp()) * 1_000_000
    us = begin + rng.integers(2 * DAY * minute, (days - 1) * DAY * minute, count)
    names = pa.array([f"SYM{number:04}/USDT" for number in range(1, symbols + 1)])
    return pa.table(
        {
            "symbol": names.take(pa.array(rng.integers(0, symbols, count))),
            "time": pa.array(us, pa.timestamp("us", "UTC")),
        }
    )
