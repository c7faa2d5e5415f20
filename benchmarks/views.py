"""Feature views beside features_1m: new minutes, builds, corrections, and their cost for others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from benchmarks.bars import DAY, FIRST, create_generator, insert_bars, load_bars, moment, refresh
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Side,
    Workbench,
    WrongResultError,
    interleave,
    queries,
    ratio_of_medians,
    require,
    require_exact,
    timed,
    value,
)
from benchmarks.heavy_lag import LIVE, PROMISED, Traffic, p99
from benchmarks.worker_process import running_worker
from feature_platform import views as v
from feature_platform.queries import queries as platform_queries
from feature_platform.views import FeatureView, bar, catalog, corr, ema, lag, ln, mean, std, zscore

LONGER = 10  # times the history
BY = 12.34  # volume
LIVE_SECONDS = 120.0
BATCH = 1000  # bars
MARKS_SECONDS = 0.03

SPANS = (
    "5 minutes",
    "15 minutes",
    "30 minutes",
    "1 hour",
    "4 hours",
    "12 hours",
    "1 day",
    "7 days",
)
_RETURN = ln(bar.close / lag(bar.close))


def _wide_columns() -> dict[str, v.Expression]:
    columns: dict[str, v.Expression] = {}
    for number, span in enumerate(SPANS):
        name = span.replace(" ", "_")
        columns[f"volatility_{name}"] = std(_RETURN, span)
        columns[f"volume_z_{name}"] = zscore(bar.vol, span)
        if number % 2:
            columns[f"mean_{name}"] = mean(_RETURN, span)
            columns[f"corr_{name}"] = corr(_RETURN, bar.vol, span)
        else:
            columns[f"volume_{name}"] = v.sum(bar.vol, span)
            columns[f"return_{name}"] = ln(bar.close / lag(bar.close, span))
    return columns


SAME = FeatureView(
    "same_1m",
    "1 minute",
    {
        "last_close": bar.close,
        "vol": bar.vol,
        "log_return": _RETURN,
        "n_1d": v.count(bar.close, "1 day"),
        "ma_vol_1d": mean(bar.vol, "1 day"),
        "std_vol_1d": std(bar.vol, "1 day"),
        "volume_z": zscore(bar.vol, "1 day"),
        "vwap_gap": bar.close - bar.vwap,
        "parkinson_vol": 0.5 * ln(bar.high / bar.low) ** 2,
    },
    description="The features of features_1m.",
)
WIDE = FeatureView("wide_1m", "1 minute", _wide_columns(), description="32 columns over 8 spans.")
EXTREMES = FeatureView(
    "extremes_1m",
    "1 minute",
    _wide_columns()
    | {
        "high_20m": v.max(bar.high, "20 minutes"),
        "low_20m": v.min(bar.low, "20 minutes"),
        "high_4h": v.max(bar.high, "4 hours"),
        "low_4h": v.min(bar.low, "4 hours"),
        "high_1d": v.max(bar.high, "1 day"),
        "low_1d": v.min(bar.low, "1 day"),
        "ema_20m": ema(bar.close, "20 minutes"),
        "ema_4h": ema(bar.close, "4 hours"),
    },
    description="32 columns over 8 spans, 6 extremes and 2 exponential means.",
)


@dataclass(frozen=True)
class Days:
    """Lengths of histories in days.

    past: before the new minutes.
    build: of the histories that are built.
    age: of the corrected bar.
    """

    past: int
    build: int
    age: int


# A past is longer than the longest span, unless the scale is too small for a result.
FULL = Days(past=8, build=30, age=12)
SMALL = Days(past=1, build=2, age=1)


class History:
    """Keep features_1m and some views of some symbols up to date, minute by minute."""

    def __init__(
        self, connection: Connection, symbols: int, days: int, views: Sequence[FeatureView]
    ) -> None:
        self.connection = connection
        self.symbols = range(1, symbols + 1)
        self.views = views
        self.first_new = self.next = days * DAY
        self.build_seconds: dict[str, list[float]] = {}
        create_generator(connection)
        load_bars(connection, self.symbols, range(self.next))
        refresh(connection)
        catalog.apply(connection, views)
        for view in views:
            self._build(view)
        connection.execute(queries["settle_views"])
        connection.execute(queries["checkpoint"])

    def _build(self, view: FeatureView) -> None:
        seconds = timed(lambda: catalog.refresh_views(self.connection, name=view.name))
        self.build_seconds.setdefault(view.name, []).append(seconds)

    def add_minute(self) -> dict[str, float]:
        """Store the bars of the next minute; return the seconds of each refresh."""
        insert_bars(self.connection, self.symbols, range(self.next, self.next + 1))
        self.next += 1
        seconds = {"features_1m": timed(lambda: refresh(self.connection))}
        for view in self.views:
            seconds[view.name] = timed(partial(self._refresh_newest, view))
        self.connection.execute(queries["clear_view_changes"])
        return seconds

    def _refresh_newest(self, view: FeatureView) -> None:
        done = self.connection.execute(
            queries["refresh_newest_of_view"], {"name": view.name}
        ).fetchone()
        if done != (len(self.symbols), len(self.symbols), False):
            raise WrongResultError(f"a new minute of {view.name}: {done}")

    def check(self) -> None:
        """Raise WrongResultError unless all new minutes have their exact features."""
        rows = require_exact(self.connection, start=moment(self.first_new))
        new = (self.next - self.first_new) * len(self.symbols)
        require(new * (1 + len(self.views)), rows, "rows of new minutes")


def run(bench: Workbench) -> Result:
    """Measure each part in databases of its own."""
    parts = [
        _new_minutes(bench),
        _longer_past(bench),
        _builds(bench),
        _writers(bench),
        _live_beside_a_build(bench),
    ]
    return Result(
        ratios=[ratio for part in parts for ratio in part.ratios],
        figures={name: figure for part in parts for name, figure in part.figures.items()},
        seconds={name: taken for part in parts for name, taken in part.seconds.items()},
    )


def _days(bench: Workbench) -> Days:
    return FULL if bench.scale >= 0.05 else SMALL


def _new_minutes(bench: Workbench) -> Result:
    symbols = bench.scaled(1000)
    days = _days(bench).past
    taken: dict[str, list[float]] = {}
    with bench.database("views_minute") as connection:
        bench.show(f"{symbols} symbols, {days} days, three views")
        history = History(connection, symbols, days, (SAME, WIDE, EXTREMES))
        for number in range(bench.rounds(30) + 2):
            for name, seconds in history.add_minute().items():
                if number >= 2:  # the first ones plan the session's statements
                    taken.setdefault(name, []).append(seconds)
        history.check()
    what = {
        SAME.name: ("the features of features_1m as a view", 1.15),
        WIDE.name: ("32 columns over 8 spans", 2),
        EXTREMES.name: ("with 8 extremes and exponential means more", 2.5),
    }
    return Result(
        ratios=[
            Ratio(
                f"one new minute, {symbols} symbols, {words}: time of features_1m",
                ratio_of_medians(taken[name], taken["features_1m"]),
                at_most=most,
            )
            for name, (words, most) in what.items()
        ],
        figures={"symbols of a new minute": symbols},
        seconds={f"new minute, {name}": seconds for name, seconds in taken.items()},
    )


def _longer_past(bench: Workbench) -> Result:
    symbols = bench.scaled(50)
    days = _days(bench).past
    with bench.database("views_short") as connection, bench.database("views_long") as other:
        bench.show(f"{symbols} symbols, {days} and {days * LONGER} days")
        short = History(connection, symbols, days, (WIDE,))
        long = History(other, symbols, days * LONGER, (WIDE,))
        names = "new minute, short past", "new minute, long past"
        sides: dict[str, Side] = {
            name: partial(_wide_minute, side)
            for name, side in zip(names, (short, long), strict=True)
        }
        seconds = interleave(sides, bench.rounds(40))
        for history in (short, long):
            history.check()
    return Result(
        ratios=[
            Ratio(
                f"one new minute of 32 columns, {symbols} symbols:"
                f" time at {LONGER} times the history",
                ratio_of_medians(*(seconds[name] for name in reversed(names))),
                at_most=1.3,
            )
        ],
        figures={"symbols of the two pasts": symbols},
        seconds=seconds,
    )


def _wide_minute(history: History) -> float:
    return history.add_minute()[WIDE.name]


def _builds(bench: Workbench) -> Result:
    """Build the views of long histories, and correct a bar of each symbol afterwards."""
    rounds = bench.rounds(10)
    days = _days(bench)
    minute = (days.build - days.age) * DAY
    symbols = bench.scaled(20, at_least=rounds + 1)
    with bench.database("views_build") as connection:
        bench.show(f"{symbols} symbols, {days.build} days: builds")
        create_generator(connection)
        load_bars(connection, range(1, symbols + 1), range(days.build * DAY))
        connection.execute(queries["settle"])
        connection.execute(queries["keep_marks"])
        builds = interleave(
            {
                "features_1m": lambda: _build_features(connection),
                SAME.name: lambda: _build_view(connection, SAME),
                WIDE.name: lambda: _build_view(connection, WIDE),
            },
            bench.rounds(3, at_least=2),  # the second one drops the view
        )
        connection.execute(queries["settle_views"])
        bench.show("corrections")
        corrected = [_correct(connection, symbol, minute) for symbol in range(1, rounds + 2)][1:]
        require_exact(connection, start=moment(minute - 1))
    repairs = {
        name: [seconds[name] / seconds[f"rows of {name}"] for seconds in corrected]
        for name in ("features_1m", SAME.name, WIDE.name)
    }
    built = builds["features_1m"]
    repaired = repairs["features_1m"]
    name = f"full build, {symbols} symbols x {days.build} days"
    return Result(
        ratios=[
            Ratio(
                f"{name}, the features of features_1m as a view: time of features_1m",
                ratio_of_medians(builds[SAME.name], built),
                at_most=1.15,
            ),
            Ratio(
                f"{name}, 32 columns: rows/s of features_1m",
                ratio_of_medians(built, builds[WIDE.name]),
                at_least=0.3,
            ),
            Ratio(
                "correction, the features of features_1m as a view: time of features_1m",
                ratio_of_medians(repairs[SAME.name], repaired),
                at_most=1.15,
            ),
            Ratio(
                "correction, 32 columns: time of features_1m, by dirty row",
                ratio_of_medians(repairs[WIDE.name], repaired),
                at_most=1.5,
            ),
        ],
        figures={
            f"rows/s, build of {name}": symbols * days.build * DAY / statistics.median(taken)
            for name, taken in builds.items()
        },
        seconds={f"build, {name}": taken for name, taken in builds.items()}
        | {f"correction, {name}, a row": taken for name, taken in repairs.items()},
    )


def _build_features(connection: Connection) -> float:
    for query in ("forget_features", "mark_again", "checkpoint"):
        connection.execute(queries[query])
    return timed(lambda: refresh(connection))


def _build_view(connection: Connection, view: FeatureView) -> float:
    if any(one.name == view.name for one in catalog.list_views(connection)):
        catalog.drop(connection, view.name)
    refresh(connection)
    catalog.apply(connection, [view])
    connection.execute(queries["checkpoint"])
    return timed(lambda: catalog.refresh_views(connection, name=view.name))


def _correct(connection: Connection, symbol: int, minute: int) -> dict[str, float]:
    """Correct a bar; return the seconds of each repair, and the rows that were dirty."""
    change = {"symbol": symbol, "minute": minute, "by": BY}
    require(1, connection.execute(queries["correct_bar"], change).rowcount, "bars corrected")
    found = {"features_1m": timed(lambda: refresh(connection)), "rows of features_1m": float(DAY)}
    for view, days in ((SAME, 1), (WIDE, 7)):
        found[view.name] = timed(partial(catalog.refresh_views, connection, name=view.name))
        found[f"rows of {view.name}"] = float(days * DAY)
    return found


def _some_views(count: int) -> list[FeatureView]:
    return [
        FeatureView(f"some_{number}", "1 minute", {"mean": mean(bar.vol, f"{number + 4} minutes")})
        for number in range(count)
    ]


def _writers(bench: Workbench) -> Result:
    """Measure a recorder's batch, and a refresh of many marks, with no view, one and ten."""
    symbols = bench.scaled(BATCH)
    views = (0, 1, 10)
    first = int((datetime.now(UTC) - FIRST).total_seconds()) // 60 - 2 * DAY
    with (
        bench.database("views_0") as none,
        bench.database("views_1") as one,
        bench.database("views_10") as ten,
    ):
        bench.show(f"batches of {symbols} bars, with 0, 1 and 10 views")
        sides = dict(zip(views, (none, one, ten), strict=True))
        for count, connection in sides.items():
            create_generator(connection)
            insert_bars(connection, range(1, symbols + 1), range(first - 60, first))
            refresh(connection)
            catalog.apply(connection, _some_views(count))
            catalog.refresh_views(connection)
            connection.execute(queries["settle_views"])
        batches: dict[int, list[float]] = {count: [] for count in views}
        refreshes: dict[int, list[float]] = {count: [] for count in views}
        picks: list[float] = []
        for number in range(bench.rounds(40) + 2):
            for count in views[:: 1 if number % 2 else -1]:
                connection = sides[count]
                stored = [
                    timed(partial(_store_batch, connection, symbols, minute))
                    for minute in (first + 2 * number, first + 2 * number + 1)
                ]
                refreshed = timed(partial(refresh, connection))
                if count == 10:
                    picked = timed(partial(connection.execute, queries["pick_symbols_of_views"]))
                if number >= 2:
                    batches[count] += stored
                    refreshes[count].append(refreshed)
                    picks += [picked] if count == 10 else []
                catalog.refresh_views(connection)
                connection.execute(queries["clear_view_changes"])
        for connection in sides.values():
            require_exact(connection, start=moment(first))
    moved = statistics.median(refreshes[10]) - statistics.median(refreshes[0])
    distribution = max(moved, 0) + statistics.median(picks)
    return Result(
        ratios=[
            Ratio(
                f"a recorder's batch of {symbols} bars with 10 views: time with one",
                ratio_of_medians(batches[10], batches[1]),
                at_most=1.05,
            ),
            Ratio(
                f"distribution of {2 * symbols} marks to 10 views,"
                f" of the promised {MARKS_SECONDS:g} s",
                distribution / MARKS_SECONDS,
                at_most=1,
            ),
        ],
        figures={"distribution of marks to 10 views, in ms": 1000 * distribution},
        seconds={f"a batch, {count} views": taken for count, taken in batches.items()}
        | {f"refresh of two batches, {count} views": taken for count, taken in refreshes.items()},
    )


def _store_batch(connection: Connection, symbols: int, minute: int) -> None:
    """Store a minute's bars by the statement of the recorder."""
    ts = moment(minute)
    us = int(ts.timestamp()) * 1_000_000
    prices = [10.0 + (minute + number) % 7 for number in range(symbols)]
    connection.execute(
        platform_queries["recorder_store"],
        {
            "symbol": [f"SYM{number:04d}/USDT" for number in range(1, symbols + 1)],
            "ts": [us] * symbols,
            "open": prices,
            "high": prices,
            "low": prices,
            "close": prices,
            "vol": prices,
            "first": ts,
            "last": ts,
        },
    )


def _live_beside_a_build(bench: Workbench) -> Result:
    """Measure live bars while a worker builds a view of long histories."""
    symbols = bench.scaled(1000)
    live = bench.scaled(LIVE, at_least=100)
    minute = int((datetime.now(UTC) - FIRST).total_seconds()) // 60 - 1
    days = _days(bench).build
    seconds = LIVE_SECONDS if bench.scale >= 0.05 else 1.0
    with bench.database("views_lag") as connection:
        bench.show(f"live bars while a view of {symbols} symbols x {days} days is built")
        create_generator(connection)
        load_bars(connection, range(1, symbols + 1), range(minute - days * DAY - 5, minute - 5))
        connection.execute(queries["forget_marks"])  # only the view has a history to build
        connection.execute(queries["live_history"], {"symbols": live, "minute": minute})
        refresh(connection)
        connection.execute(queries["settle_views"])
        traffic = Traffic(connection, minute)
        with running_worker(bench, connection):
            catalog.apply(connection, [WIDE])
            traffic.beside(lambda: time.sleep(seconds))
            unbuilt = value(connection, "unbuilt_symbols")
        if bench.scale >= 0.05 and not unbuilt:
            raise WrongResultError("the view was complete before the live bars were")
    return Result(
        ratios=[
            Ratio(
                f"live bars while a view of {symbols} symbols x {days} days is built: p99,"
                f" of the promised {PROMISED:g} s",
                p99(traffic.lags) / PROMISED,
                at_most=1,
            )
        ],
        figures={
            "live bars while a view is built: p50, in ms": 1000 * statistics.median(traffic.lags),
            "live bars while a view is built: p99, in ms": 1000 * p99(traffic.lags),
        },
        seconds={"live bars while a view is built": traffic.lags},
    )
