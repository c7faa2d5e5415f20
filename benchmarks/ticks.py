"""A tick of Dagster's sensors at many symbols: the checks, and the search for missing minutes.

Bars and rows are stored as recorder and worker store them, and the sensors are evaluated as the
daemon does, in turns on a history of 3 days and on one of 30. The symbols trade rarely: before the
last three hours one hour in ten has bars, and the others are listed as quiet, so that 30 days of
all symbols are loaded in a minute. All symbols have the same bars, so that features are computed
only once.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from benchmarks.bars import DAY, FIRST, create_generator, moment, refresh
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
    value,
)
from feature_platform.database import connect
from feature_platform.orchestration.cursors import ReportedChecks
from feature_platform.orchestration.instance import instance_file, storage_url
from feature_platform.policy import run_policy
from feature_platform.settings import PREFIX
from feature_platform.validation import CHECKS, evaluate

SYMBOLS = 1000
DAYS = 3
LONGER = 10  # times
RECENT = 180  # minutes, of which each has a bar
TRADED = 10  # hours, one of which has bars before the recent minutes
PROMISED = 1.0  # seconds

GAPS, CHECKING, REPORTING = "gap tick", "check tick", "check tick with its reports"
ASSETS = ("ohlcv_1m", "features_1m", "exchange_feed", "features_1m_policy")


class History:
    """Symbols with a history up to the newest closed minute.

    first, next: the numbers of the oldest minute and of the next minute to store.
    check_seconds: the times of each check, by name.
    """

    def __init__(self, bench: Workbench, connection: Connection, symbols: int, days: int) -> None:
        self.connection = connection
        self.symbols = symbols
        self.check_seconds: dict[str, list[float]] = {check.name: [] for check in CHECKS}
        self.names = [f"SYM{number:04}/USDT" for number in range(1, symbols + 1)]
        self._url = bench.url_of(connection)
        self.next = _minutes_over()
        self.first = self.next - days * DAY
        self._load()

    def _load(self) -> None:
        span = {
            "symbols": self.symbols,
            "first_minute": self.first,
            "last_minute": self.next - 1,
            "recent_minute": self.next - RECENT,
            "traded": TRADED,
        }
        execute = self.connection.execute
        create_generator(self.connection)
        execute(queries["keep_out_of_the_log"])
        execute(queries["store_first_symbol"], span)
        refresh(self.connection)
        execute(queries["triggers_off"])
        for table in ("bars", "features", "state"):
            execute(queries[f"multiply_{table}"], span)
        execute(queries["triggers_on"])
        execute(queries["find_symbols"])
        execute(queries["account_for_quiet"], span)
        execute(queries["account_for_all"], span)
        execute(queries["store_heartbeats"])
        execute(queries["analyze_pasts"])
        execute(queries["checkpoint"])

    def catch_up(self) -> None:
        """Store the minutes that have closed, and their features, as recorder and worker do."""
        for minute in range(self.next, _minutes_over()):
            self.next = minute + 1
            bars = {"symbols": self.symbols, "minute": minute}
            self.connection.execute(queries["insert_same_minute"], bars)
            run_policy(self.connection, "worker", until=lambda _seconds: False)
        self.connection.execute(queries["beat"])

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Have the platform's settings name this database while the body runs."""
        with environment(
            **{
                f"{PREFIX}DATABASE_URL": self._url,
                f"{PREFIX}SYMBOLS": ",".join(self.names),
            }
        ):
            yield

    def check(self) -> float:
        """Evaluate each check by itself; return the seconds of all."""
        total = 0.0
        self.catch_up()
        with self.settings(), connect() as connection:
            for name, taken in self.check_seconds.items():
                taken.append(timed(partial(evaluate, connection, [name])))
                total += taken[-1]
        return total


class Sensors:
    """The sensors; this class evaluates them as the daemon of an instance does."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        # Their partitions begin at the start date that is set when this import runs.
        from feature_platform.orchestration.resources import DatabaseResource
        from feature_platform.orchestration.sensors import sensors

        self._instance = instance
        self._sensors = {sensor.name: sensor for sensor in sensors}
        self._resources = {"database": DatabaseResource()}

    def gaps(self, history: History) -> float:
        """Account for one minute of each symbol; return the seconds of the tick."""
        history.connection.execute(queries["account_again"])
        seconds, data = self._tick("repair_missing_minutes", history, None)
        require([], data.run_requests or [], "repairs requested")
        left = value(history.connection, "not_accounted_for")
        require(0, left, "symbols not accounted for, or with open gaps")
        return seconds

    def checks(self, history: History) -> float:
        """Run the checks of a state that has not changed; return the seconds of the tick."""
        return self._checks(history)

    def reports(self, history: History) -> float:
        """Report the features and their checks; return the seconds of the tick and its reports.

        The features have more checks than any other asset. One of these checks is slow.
        """
        return self._checks(history, "features_1m")

    def first(self, history: History) -> float:
        """Report everything, as the first tick does; return its seconds with its reports."""
        return self._checks(history, *ASSETS)

    def _checks(self, history: History, *due: str) -> float:
        reports = {asset: 0.0 if asset in due else time.time() + DAY * 60 for asset in ASSETS}
        cursor = ReportedChecks(reports=reports) if set(due) < set(ASSETS) else ReportedChecks()
        seconds, data = self._tick("run_checks", history, cursor.dump())
        expected = [check.name for check in CHECKS if check.table in due]
        found = [one.check_name for one in data.asset_events if hasattr(one, "check_name")]
        require(expected, found, "checks reported")
        for event in data.asset_events:
            seconds += timed(partial(self._instance.report_runless_asset_event, event))
        return seconds

    def _tick(self, name: str, history: History, cursor: str | None) -> tuple[float, Any]:
        found: list[Any] = []
        history.catch_up()
        with (
            history.settings(),
            dg.build_sensor_context(
                instance=self._instance,
                cursor=cursor,
                resources=self._resources,
                sensor_name=name,
            ) as context,
        ):
            sensor = self._sensors[name]
            seconds = timed(lambda: found.append(sensor.evaluate_tick(context)))
        return seconds, found[0]


def run(bench: Workbench) -> Result:
    """Measure both ticks on a short past and on a long one."""
    symbols = bench.scaled(SYMBOLS, at_least=2)
    rounds = bench.rounds(9)
    with ExitStack() as stack:
        histories = {}
        for name, days in (("short", DAYS), ("long", DAYS * LONGER)):
            bench.show(f"{symbols} symbols, {days} days")
            connection = stack.enter_context(bench.database(f"ticks_{name}"))
            histories[name] = History(bench, connection, symbols, days)
        start = moment(histories["long"].first).date()
        stack.enter_context(environment(**{f"{PREFIX}START_DATE": start.isoformat()}))
        sensors = Sensors(stack.enter_context(_instance(bench)))
        for history in histories.values():  # plan the statements, report the days once
            for tick in (sensors.first, sensors.gaps, sensors.reports, sensors.checks):
                tick(history)
        sides: dict[str, Side] = {}
        for name, history in histories.items():
            for what, tick in (
                (GAPS, sensors.gaps),
                (CHECKING, sensors.checks),
                (REPORTING, sensors.reports),
            ):
                sides[f"{what}, {name} past"] = partial(tick, history)
            sides[f"checks alone, {name} past"] = history.check
        seconds = interleave(sides, rounds)
        traded: dict[str, float] = {
            f"bars of a symbol, {name} past": value(history.connection, "count_bars_of_one")
            for name, history in histories.items()
        }
        long = histories["long"].check_seconds
    seconds |= {f"check {name}, long past": taken for name, taken in long.items()}
    return _result(symbols, seconds, traded)


def _result(symbols: int, seconds: dict[str, list[float]], traded: dict[str, float]) -> Result:
    ratios = []
    for what in (GAPS, CHECKING, REPORTING):
        name = f"{what}, {symbols} symbols"
        tick = seconds[f"{what}, long past"]
        ratios.append(
            Ratio(
                f"{name}, {DAYS * LONGER} days: of the promised {PROMISED:g} s",
                statistics.median(tick) / PROMISED,
                at_most=1,
            )
        )
        ratios.append(
            Ratio(
                f"{name}: time at {LONGER} times the history",
                ratio_of_medians(tick, seconds[f"{what}, short past"]),
                at_most=1.3,
            )
        )
    return Result(
        ratios,
        {"symbols": symbols, "days": DAYS * LONGER} | traded,
        seconds,
    )


def _minutes_over() -> int:
    """Return the number of closed minutes since FIRST."""
    return int((datetime.now(UTC) - FIRST).total_seconds()) // 60


@contextmanager
def _instance(bench: Workbench) -> Iterator[dg.DagsterInstance]:
    """Yield an instance of Dagster with the project's dagster.yaml, in a database of its own."""
    with (
        bench.empty_database("ticks_dagster") as url,
        tempfile.TemporaryDirectory(prefix="feature_platform-") as home,
        environment(
            DAGSTER_HOME=home, DAGSTER_POSTGRES_URL=storage_url(url, urlsplit(url).path[1:])
        ),
    ):
        Path(home, "dagster.yaml").write_text(instance_file().read_text(encoding="utf-8"))
        with dg.DagsterInstance.from_config(home) as instance:
            yield instance
