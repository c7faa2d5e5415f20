"""Guards against wrong bars and unexplained minutes after a backfill with faults.

Exchange and database use one clock, which advances only by a test or by a client's waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.backfill import BackfillReport, backfill, backfill_day, backfill_gaps
from feature_platform.clock import ManualClock
from feature_platform.exchange.client import Exchange
from feature_platform.gaps import find_gaps, list_gaps
from feature_platform.settings import get_settings
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import RecordedTruth, Truth
from feature_platform.verify import verify
from feature_platform_tests.fix_database import Databases, make_simulated
from feature_platform_tests.fix_exchange import MakeExchange, quick
from feature_platform_tests.fix_processes import value
from feature_platform_tests.integration.test_exchange_client import (
    FULL,
    MINUTE,
    THIN,
    THIN_FILE,
    Fault,
    stored,
    traded,
)

NOW = datetime(2026, 3, 10, 12, 0, 30, tzinfo=UTC)
START = datetime(2026, 3, 9, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)

# After this time each minute without a bar is explained, unless the exchange does not answer. The
# last fetch of a minute is 10 to 15 minutes after its end.
SETTLED = timedelta(minutes=25)

Tick = Callable[[], list[BackfillReport]]


@pytest.fixture
def exchange_clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture(scope="module")
def module_database(databases: Databases) -> Iterator[str]:
    with databases.fresh() as url:
        make_simulated(url)
        yield url


@pytest.fixture
def conn(module_database: str, exchange_clock: ManualClock) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection to a database without bars, with the exchange's clock."""
    with psycopg.connect(module_database, autocommit=True) as connection:
        set_clock(connection, exchange_clock)
        # The rows, too: another test's rows can be of minutes that are in the future here.
        connection.execute("TRUNCATE ohlcv_1m, features_1m")
        yield connection


@pytest.fixture
def patient(make_exchange: MakeExchange, exchange_clock: ManualClock) -> Exchange:
    """Return a client whose waits advance the exchange's clock."""
    patience = quick(
        sleep=exchange_clock.advance, first_wait=0.01, jitter=0.001, longest_retry_after=600
    )
    return make_exchange(patience=patience, clock=exchange_clock)


@pytest.fixture
def tick(
    conn: psycopg.Connection[Any], patient: Exchange, exchange_clock: ManualClock
) -> Callable[[], list[BackfillReport]]:
    """Return a function that passes a minute, then finds gaps and fetches the due ones."""

    def run() -> list[BackfillReport]:
        exchange_clock.advance(60)
        set_clock(conn, exchange_clock)
        find_gaps(conn)
        return backfill_gaps(conn, patient)

    return run


def set_clock(connection: psycopg.Connection[Any], clock: ManualClock) -> None:
    """Set the database's clock to the exchange's time."""
    setting = value(
        connection,
        "SELECT set_config('feature_platform.clock', %s || '@' || to_char("
        "  clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"x1'), false)",
        f"{clock.now():%Y-%m-%dT%H:%M:%S.%fZ}",
    )
    assert setting


def settle(tick: Tick, clock: ManualClock) -> datetime:
    """Let minutes pass until all minutes that are closed now must be explained."""
    end = clock.now().replace(second=0, microsecond=0)
    while clock.now() < end + SETTLED:
        tick()
    return end


def unexplained(connection: psycopg.Connection[Any], symbol: str, end: datetime) -> int:
    """Count the minutes up to `end` without a bar and without a gap in any state but filled."""
    count = value(
        connection,
        "SELECT count(*) FROM generate_series((SELECT min(ts) FROM ohlcv_1m WHERE symbol = %s),"
        "                                     %s - interval '1 minute', '1 minute') AS m (minute)"
        " WHERE NOT EXISTS (SELECT FROM ohlcv_1m b WHERE b.symbol = %s AND b.ts = m.minute)"
        "   AND NOT EXISTS (SELECT FROM ohlcv_1m_gaps g WHERE g.symbol = %s AND g.state <> 'filled'"
        "                      AND g.start_ts <= m.minute AND g.end_ts > m.minute)",
        symbol,
        end,
        symbol,
        symbol,
    )
    assert isinstance(count, int)
    return count


def missing(connection: psycopg.Connection[Any], symbol: str, end: datetime) -> dict[str, int]:
    """Count the missing minutes up to `end` by their state."""
    found: dict[str, int] = {}
    for gap in list_gaps(connection, symbol, ["open", "quiet", "unavailable"]):
        minutes = int((min(gap.end, end) - gap.start) / MINUTE)
        if minutes > 0:
            found[gap.state] = found.get(gap.state, 0) + minutes
    return found


def assert_features_follow(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CALL refresh_features_1m(NULL, NULL)")
    report = verify(connection)
    assert (report.mismatches, report.pending) == (0, 0)
    assert report.rows > 0


def test_a_removed_symbol_does_not_stop_the_repair_of_others(
    conn: psycopg.Connection[Any], patient: Exchange, tick: Tick
) -> None:
    gone = "ADA/GONE"  # its gaps come first
    patient.symbols = (gone, *patient.symbols)
    lost = (NOW - 2 * HOUR, NOW - HOUR)
    backfill(conn, patient, FULL, NOW - 3 * HOUR, NOW)
    conn.execute(
        "INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)"
        " SELECT %s, ts, open, high, low, close, vol FROM ohlcv_1m WHERE ts < %s",
        (gone, lost[0]),
    )
    conn.execute("DELETE FROM ohlcv_1m WHERE symbol = %s AND ts >= %s AND ts < %s", (FULL, *lost))
    reports = {report.symbol: report for report in tick()}
    assert reports[FULL].error is None
    assert reports[FULL].stored.inserted == 60
    assert reports[gone].error == f"binance has no symbol '{gone}'"
    (gap,) = list_gaps(conn, gone)
    assert (gap.state, gap.attempts, gap.last_error) == ("open", 1, reports[gone].error)
    day = NOW.replace(hour=0, minute=0, second=0)
    found = backfill_day(conn, patient, day, [gone, FULL])
    assert [report.error is None for report in found] == [False, True]


def test_a_later_process_respects_the_ban_of_an_exchange(
    conn: psycopg.Connection[Any],
    simulator: SimulatedExchange,
    make_exchange: MakeExchange,
    exchange_clock: ManualClock,
) -> None:
    """Each run is its own process, whose client does not know the earlier answers."""
    with make_exchange(clock=exchange_clock) as exchange:
        backfill(conn, exchange, FULL, NOW - 3 * HOUR, NOW)
    lost = (NOW - 2 * HOUR, NOW - HOUR)
    conn.execute("DELETE FROM ohlcv_1m WHERE symbol = %s AND ts >= %s AND ts < %s", (FULL, *lost))
    find_gaps(conn)
    simulator.set_faults({"kind": "banned", "retry_after": 7200, "endpoint": "any"})
    for _ in range(3):
        with make_exchange(clock=exchange_clock) as exchange:
            backfill_gaps(conn, exchange)
    (gap,) = list_gaps(conn, FULL, ["open"])
    assert gap.attempts == 1
    assert gap.next_attempt_at is not None
    assert gap.next_attempt_at - gap.changed_at >= timedelta(seconds=7190)


# Transient faults, each during a fetch of a day and a half.
PASSING: dict[str, list[Fault]] = {
    "latency": [{"kind": "latency", "seconds": 0.05}],
    "429": [{"kind": "too_many_requests", "retry_after": 20, "after": 1, "count": 3}],
    "418": [{"kind": "banned", "retry_after": 120, "after": 1, "count": 1}],
    "500": [{"kind": "server_error", "status": 500, "probability": 0.4}],
    "503 for a time": [
        {"kind": "server_error", "status": 503, "after": 1, "count": 9, "symbol": FULL}
    ],
    "a proxy's 502": [{"kind": "server_error", "status": 502, "probability": 0.4}],
    "resets": [{"kind": "reset", "at": 0.5, "probability": 0.4}],
    "garbled": [{"kind": "garbled", "probability": 0.4}],
    "short pages": [{"kind": "short_page", "rows": 300}],
    "the open candle": [{"kind": "open_candle", "position": "last"}],
    "disorder": [{"kind": "shuffled"}, {"kind": "repeated", "rows": 5}],
    "late": [{"kind": "late", "seconds": 240, "probability": 0.5}],
    "malformed": [{"kind": "malformed", "rows": 3, "count": 4}],
    "all at once": [
        {"kind": "server_error", "status": 503, "probability": 0.15},
        {"kind": "reset", "at": 0.3, "probability": 0.15},
        {"kind": "short_page", "rows": 400, "probability": 0.3},
        {"kind": "late", "seconds": 240, "probability": 0.2},
        {"kind": "malformed", "rows": 1, "count": 2},
        {"kind": "open_candle", "position": "middle"},
    ],
}


@pytest.mark.parametrize("name", PASSING)
def test_after_a_transient_fault_all_minutes_are_stored_or_quiet(
    conn: psycopg.Connection[Any],
    simulator: SimulatedExchange,
    patient: Exchange,
    tick: Tick,
    exchange_truth: Truth,
    exchange_clock: ManualClock,
    name: str,
) -> None:
    simulator.set_faults({"kind": "quiet_left_out"}, *PASSING[name])
    for symbol in (FULL, THIN):
        backfill(conn, patient, symbol, START, exchange_clock.now())
    if name == "503 for a time":  # longer than a client's retries: the gaps stay open
        find_gaps(conn)
        assert missing(conn, FULL, NOW)["open"] > 1000
    end = settle(tick, exchange_clock)
    for symbol in (FULL, THIN):
        bars = exchange_truth.bars(symbol, START, end)
        quiet = int((bars["trades"] == 0).sum())
        assert [row for row in stored(conn, symbol) if row[0] < end] == traded(
            exchange_truth, symbol, START, end, quiet=False
        )
        # Quiet minutes before the first bar of a symbol are no gaps.
        before_first = int((stored(conn, symbol)[0][0] - START) / MINUTE)
        assert missing(conn, symbol, end) == ({"quiet": quiet - before_first} if quiet else {})
        assert unexplained(conn, symbol, end) == 0
    for fault in PASSING[name]:
        assert simulator.faults.fired(fault["kind"]) > 0 or fault["kind"] == "late"
    assert_features_follow(conn)


def test_the_next_fetch_of_a_day_stores_its_corrections(
    conn: psycopg.Connection[Any],
    simulator: SimulatedExchange,
    patient: Exchange,
    exchange_truth: Truth,
    exchange_clock: ManualClock,
) -> None:
    until = (NOW + HOUR).isoformat()
    simulator.set_faults({"kind": "corrected", "until": until, "probability": 0.2})
    end = NOW.replace(second=0)
    first = backfill(conn, patient, FULL, START, end)
    assert_features_follow(conn)
    exchange_clock.advance(3600)
    second = backfill(conn, patient, FULL, START, end)
    assert second.stored.inserted == 0
    assert 0.1 < second.stored.updated / first.stored.inserted < 0.3
    assert stored(conn, FULL) == traded(exchange_truth, FULL, START, end)
    assert_features_follow(conn)


@pytest.mark.parametrize("status", [503, None])
def test_the_gap_of_an_outage_is_filled_after_its_end(
    conn: psycopg.Connection[Any],
    simulator: SimulatedExchange,
    patient: Exchange,
    tick: Tick,
    exchange_truth: Truth,
    exchange_clock: ManualClock,
    status: int | None,
) -> None:
    """An exchange that omits bars without an error reports minutes without trades.

    Such minutes are not fetched again automatically; a fetch of the wlost day finds the bars.
    """
    lost = (START + 3 * HOUR, START + 5 * HOUR)
    backfill(conn, patient, FULL, START, lost[0])
    begins, ends = (moment.isoformat() for moment in lost)
    outage = {"kind": "outage", "start": begins, "end": ends, "status": status}
    simulator.set_faults(outage)
    backfill(conn, patient, FULL, lost[0], exchange_clock.now())
    tick()
    expected = "quiet" if status is None else "open"
    assert missing(conn, FULL, NOW)[expected] >= 120
    simulator.set_faults()
    if status is None:
        backfill(conn, patient, FULL, *lost)
    end = settle(tick, exchange_clock)
    assert [row for row in stored(conn, FULL) if row[0] < end] == traded(
        exchange_truth, FULL, START, end
    )
    assert missing(conn, FULL, end) == {}
    assert any(gap.start <= lost[0] < gap.end for gap in list_gaps(conn, FULL, ["filled"]))
    assert_features_follow(conn)


def test_minutes_without_an_answer_become_unavailable_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
    conn: psycopg.Connection[Any],
    simulator: SimulatedExchange,
    patient: Exchange,
    exchange_truth: Truth,
    exchange_clock: ManualClock,
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_GAP_ATTEMPTS", "4")
    get_settings.cache_clear()
    lost = (START + 3 * HOUR, START + 5 * HOUR)
    backfill(conn, patient, FULL, START, lost[0])
    backfill(conn, patient, FULL, lost[1], exchange_clock.now())
    begins, ends = (moment.isoformat() for moment in lost)
    simulator.set_faults({"kind": "outage", "start": begins, "end": ends, "status": 503})
    rounds = 0
    while not list_gaps(conn, FULL, ["unavailable"]):
        exchange_clock.advance(2 * 3600)  # longer than any wait between two attempts
        set_clock(conn, exchange_clock)
        find_gaps(conn)
        backfill_gaps(conn, patient)
        rounds += 1
        assert rounds <= 4
    (gap,) = list_gaps(conn, FULL, ["unavailable"])
    assert (gap.start, gap.end, gap.attempts) == (*lost, 4)
    assert gap.last_error is not None
    assert "tried 4 times: OperationFailed: binance" in gap.last_error
    requests = simulator.faults.fired("outage")
    find_gaps(conn)
    backfill_gaps(conn, patient)
    assert simulator.faults.fired("outage") == requests  # no further fetch
    around = traded(exchange_truth, FULL, START, NOW.replace(second=0))
    assert [row for row in stored(conn, FULL) if row[0] < NOW.replace(second=0)] == [
        row for row in around if not lost[0] <= row[0] < lost[1]
    ]
    assert unexplained(conn, FULL, NOW.replace(second=0)) == 0
    # A bar that the exchange publishes later closes the gap.
    simulator.set_faults()
    backfill(conn, patient, FULL, *lost)
    assert missing(conn, FULL, NOW) == {}
    assert_features_follow(conn)


@pytest.mark.skipif(not THIN_FILE.exists(), reason=f"{THIN_FILE.name} does not exist")
class TestRealSymbolWithQuietMinutes:
    END = datetime(2019, 10, 13, 17, 20, tzinfo=UTC)

    @pytest.fixture
    def exchange_truth(self) -> Truth:
        return RecordedTruth(THIN, THIN_FILE)

    @pytest.fixture
    def exchange_clock(self, exchange_truth: Truth) -> ManualClock:
        first = datetime.fromtimestamp(exchange_truth.first * 60, UTC)
        return ManualClock(first + 3560 * MINUTE)

    def test_every_missing_minute_is_quiet_after_one_request(
        self,
        conn: psycopg.Connection[Any],
        simulator: SimulatedExchange,
        patient: Exchange,
        tick: Tick,
        exchange_truth: Truth,
        exchange_clock: ManualClock,
    ) -> None:
        simulator.set_faults({"kind": "latency", "seconds": 0})  # this fault counts the requests
        start = datetime.fromtimestamp(exchange_truth.first * 60, UTC)
        end = exchange_clock.now()
        backfill(conn, patient, THIN, start, end)
        assert len(stored(conn, THIN)) == 2469
        settled = settle(tick, exchange_clock)
        assert missing(conn, THIN, settled) == {"quiet": 1091}
        quiet = [(gap.start, gap.end) for gap in list_gaps(conn, THIN, ["quiet"])]
        joined = sum(start not in {end for _, end in quiet} for start, _ in quiet if start < end)
        assert joined == 676
        pages = -(-3560 // 1000)
        # Each later minute had its own request, after it was found missing; all minutes before
        # had one fetch.
        requests = simulator.faults.fired("latency")
        assert pages <= requests <= pages + 2 * int(SETTLED / MINUTE)
        for _ in range(3):
            tick()
        # The newest minutes were fetched again, because an exchange may publish them late.
        young = end - timedelta(minutes=10)
        listed = [gap for gap in list_gaps(conn, THIN, ["quiet"]) if gap.end <= young]
        assert {gap.attempts for gap in listed} <= {0, 1}
