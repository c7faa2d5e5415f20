"""Guards against a history of a row that is wrong, slow to read or unreadable."""

from __future__ import annotations

import itertools
import random
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.errors import UserError
from feature_platform.skew import skew
from feature_platform.views import FeatureView, bar, catalog
from feature_platform.why import SHOWN, Why, why
from feature_platform_tests.fix_plans import about_as_many
from feature_platform_tests.fix_processes import rejection, run, run_on, value
from feature_platform_tests.fix_skew import serve
from feature_platform_tests.fix_views import CANDLES, add_bars, ago, refresh_all

Conn = psycopg.Connection[Any]
WIDTH = 80
MINUTE = timedelta(minutes=1)


def refresh(conn: Conn) -> int:
    refresh_all(conn)
    return int(value(conn, "SELECT max(no) FROM feature_platform.refresh"))


def change(conn: Conn, ts: datetime, vol: float) -> None:
    conn.execute("UPDATE ohlcv_1m SET vol = %s WHERE symbol = 'A' AND ts = %s", (vol, ts))


@pytest.fixture
def history(conn: Conn) -> datetime:
    """Store 30 minutes, and change bars of it; return the minute of the row that they reach."""
    catalog.apply(conn, [CANDLES])
    first = ago(150)  # its hour has closed
    add_bars(conn, first, 30)
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [first + timedelta(minutes=5)])
    refresh(conn)
    change(conn, first + timedelta(minutes=20), 100)
    refresh(conn)
    change(conn, first + timedelta(minutes=20), 200)
    add_bars(conn, first + timedelta(minutes=5), 1)
    refresh(conn)
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [first + timedelta(minutes=6)])
    change(conn, first + timedelta(minutes=20), 300)
    return first + timedelta(minutes=20)


def test_a_reader_asks_for_a_row_and_compares_what_was_served(
    conn: Conn, history: datetime
) -> None:
    serve(conn, "A")
    with conn.transaction():
        conn.execute("SET LOCAL ROLE feature_platform_reader")
        assert why(conn, "A", history).bucket == history
        assert why(conn, "A", history, view=CANDLES.name).bucket <= history
        assert skew(conn, since=history).is_right


def test_every_version_is_listed_with_its_refresh(conn: Conn, history: datetime) -> None:
    found = why(conn, "A", history + timedelta(seconds=30))
    assert found.bucket == history
    assert [row.values[1] for row in found.rows] == [200, 100, 1 + 20 * 13 % 7]
    numbers = [row.since for row in found.rows]
    assert numbers == sorted(numbers, reverse=True)
    assert [row.until for row in found.rows] == [None, *numbers[:2]]
    assert all(row.known_by for row in found.rows)
    assert [(one.source, one.bars) for one in found.sources] == [("stream", 20)]
    own = [bar for bar in found.bars if bar.ts == history]
    assert [bar.vol for bar in own] == [300, 200, 100, 1 + 20 * 13 % 7]
    assert [bar.is_stored for bar in own] == [True, False, False, False]
    # The last change waits for its refresh.
    assert [bar.no for bar in own] == [None, *numbers]
    (deleted,) = (bar for bar in found.bars if bar.ts == history - timedelta(minutes=14))
    assert (deleted.gone, deleted.no, deleted.until) == (True, numbers[2], None)
    late = [bar for bar in found.bars if bar.ts == history - timedelta(minutes=15)]
    assert [(bar.no, bar.is_stored) for bar in late] == [(numbers[0], True)]
    assert (found.more, found.unchanged) == (0, None)


def test_a_deleted_bar_that_waits_and_rows_of_a_view_are_shown(
    conn: Conn, history: datetime
) -> None:
    refresh(conn)
    found = why(conn, "A", history - timedelta(minutes=14))
    assert found.rows[0].until is not None
    (bar,) = (bar for bar in found.bars if bar.ts == found.bucket)
    assert (bar.gone, bar.until) == (True, found.rows[0].until)
    candle = why(conn, "A", history, "candles_1h")
    assert candle.columns == list(CANDLES.columns)
    with pytest.raises(UserError, match="no bars of 'B'"):
        why(conn, "B", history)
    with pytest.raises(UserError, match="no feature view 'candles'"):
        why(conn, "A", history, "candles")


def test_the_commands_are_readable_at_80_columns(
    conn: Conn, database: str, history: datetime
) -> None:
    done = run_on(database, "why", "A", history.isoformat())
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "Bars of this bucket; earlier bars that were corrected, late, or not refreshed:" in lines
    assert max(map(len, lines)) <= WIDTH, done.stdout
    assert lines[0] == f"features_1m A {history:%Y-%m-%d %H:%M} UTC, stored"
    assert any(line.startswith("volume_z") for line in lines)
    assert any("deleted" in line for line in lines)
    assert any("deleted" in line and "waits" in line for line in lines)
    done = run_on(database, "why", "NONE", history.isoformat())
    assert (done.returncode, done.stdout) == (2, "")

    refresh(conn)
    serve(conn, "A")
    done = run_on(database, "skew", "--since", "2020-01-01")
    found = "skew: 2 served rows computed again: 0 mismatch, 0 missing, 0 extra\n"
    assert (done.returncode, done.stdout) == (0, found)
    first = value(conn, "SELECT min(served_at) FROM feature_platform.served")
    serve(conn, "A")  # the same rows again
    for more in ([], ["--sample", "10"]):
        conn.execute("UPDATE feature_platform.served SET values[1] = -1.2345678901234568e-05")
        done = run_on(database, "skew", "--since", "2020-01-01", *more)
        assert done.returncode == 1
        summary, place, numbers, values, *rest = done.stdout.splitlines()
        assert summary.startswith("skew: 4 served rows computed again: 4 mismatch, 0 missing, 0")
        assert re.fullmatch(r"mismatch: candles_1h A \d{4}-\d\d-\d\d \d\d:00 UTC", place)
        at = f"{first.astimezone(UTC):%Y-%m-%d %H:%M:%S}".removesuffix(":00")
        assert re.fullmatch(
            rf"  first served at {at} UTC; refresh \d+, the symbol's last \d+", numbers
        )
        assert values == "  open: served -1.2345678901234568e-05, computed 10"
        assert len(rest) == 3
        assert rest[0].startswith("mismatch: features_1m A ")
        assert max(map(len, done.stdout.splitlines())) <= WIDTH, done.stdout


@pytest.mark.usefixtures("history")
def test_skew_explains_rows_that_it_cannot_compare(conn: Conn, database: str) -> None:
    done = run_on(database, "skew", "--since", "2020-01-01")
    assert done.returncode == 0
    assert done.stdout == (
        "skew: no served rows were logged since 2020-01-01 00:00 UTC: the model service logs the"
        " rows that it serves only where FEATURE_PLATFORM_SERVE_LOG is set\n"
    )
    done = run_on(database, "skew", "--since", "2999-01-01")
    assert (done.returncode, done.stdout) == (2, "")
    error = "feature-platform: since, 2999-01-01T00:00:00+00:00, is in the future: it is 20"
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1
    refresh(conn)
    serve(conn, "A")
    conn.execute("UPDATE feature_platform.served SET view = 'gone_1h' WHERE view <> 'features_1m'")
    done = run_on(database, "skew", "--since", "2020-01-01")
    assert done.stdout == (
        "skew: 1 served row computed again: 0 mismatch, 0 missing, 0 extra;"
        " of views or versions that were replaced or dropped: 1\n"
    )


# All chunks of a hypertable count, too.
_PAGES = (
    "SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class WHERE relkind IN ('r', 'i')"
)


def test_the_history_of_a_row_is_read_by_indexes(histories: tuple[Conn, Conn]) -> None:
    pages = []
    for conn in histories:
        minute = value(conn, "SELECT max(bucket) FROM features_1m WHERE symbol = 'S1'")
        why(conn, "S1", minute)  # plans its statements
        with conn.transaction():
            before = value(conn, _PAGES)
            found = why(conn, "S1", minute)
            pages.append(int(value(conn, _PAGES) - before))
        assert [one.bars for one in found.sources] == [144]
    assert min(pages) > 0
    assert about_as_many(pages), pages


def test_the_reason_for_which_a_row_is_missing_is_read_by_indexes(
    histories: tuple[Conn, Conn],
) -> None:
    for symbol, match in (("S1", "no bars"), ("S", "did you mean")):
        pages = []
        for conn in histories:
            minute = value(conn, "SELECT max(bucket) - interval '1 minute' FROM features_1m")
            for _ in range(2):  # the first plans its statements
                with conn.transaction():
                    before = value(conn, _PAGES)
                    with pytest.raises(UserError, match=match):
                        why(conn, symbol, minute)
                    pages.append(int(value(conn, _PAGES) - before))
        assert min(pages) > 0
        assert about_as_many(pages[1::2]), pages


def test_a_bar_that_came_again_and_a_row_inside_a_minute_wait_for_their_refresh(conn: Conn) -> None:
    first = ago(30)
    again, inside = first + timedelta(minutes=2), first + timedelta(minutes=3, seconds=30)
    add_bars(conn, first, 5)
    refresh(conn)
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [again])
    refresh(conn)
    for ts in (again, inside):
        add_bars(conn, ts, 1)
    for waits in (True, False):
        found = why(conn, "A", first + timedelta(minutes=4))
        stored = [bar for bar in found.bars if bar.is_stored and bar.ts in (again, inside)]
        assert {bar.ts for bar in stored} >= {again}
        assert all((bar.no is None) == waits for bar in stored)
        refresh(conn)


TWENTY = FeatureView("twenty_20m", "20 minutes", {"close": bar.close, "n": bar.n})
_PUT = """
    INSERT INTO ohlcv_1m AS b (symbol, ts, open, high, low, close, vol)
    VALUES ('A', %s, 10, 12, 9, 10, %s) ON CONFLICT (symbol, ts) DO UPDATE SET vol = excluded.vol
"""


def bars_at_each_number(conn: Conn) -> list[dict[datetime, float]]:
    """Return the volumes of the bars of A as of each number from 0 on."""
    query = "SELECT ts, vol FROM feature_platform.bars_as_of('A', '-infinity', 'infinity', %s)"
    newest = value(conn, "SELECT max(no) FROM feature_platform.refresh")
    return [dict(conn.execute(query, [number]).fetchall()) for number in range(newest + 1)]


def check_bars(conn: Conn, found: Why, known: list[dict[datetime, float]]) -> None:
    """Fail unless the listed versions are those of bars_as_of; each version has its own volume."""
    for one in found.bars:
        numbers = [no for no, bars in enumerate(known) if bars.get(one.ts) == one.vol]
        if one.no is None:
            assert (numbers, one.is_stored) == ([], True), one
            continue
        until = len(known) if one.until is None else one.until
        assert numbers == list(range(one.no, until)), (one, numbers)
        if one.until is not None:
            assert one.gone == (one.ts not in known[one.until]), one
    # All versions of the bucket are listed, and all bars that wait.
    assert (found.more, found.unchanged) == (0, None)
    listed = {(one.ts, one.vol) for one in found.bars}
    end = found.bucket + (timedelta(minutes=20) if found.view == TWENTY.name else MINUTE)
    for bars in known:
        assert {one for one in bars.items() if found.bucket <= one[0] < end} <= listed
    stored = "SELECT ts, vol FROM ohlcv_1m WHERE symbol = 'A' AND ts < %s"
    assert set(conn.execute(stored, [end])) - set(known[-1].items()) <= listed


HISTORIES = {
    "again": "-5 R +5 -5 R +5 R -5 +5 R",  # the last one waits, and the bar has entries
    "inside": "+5.5 R +3.5 -5 R",
    "start deleted before": "-5 R +5.5 R",
    "never seen": "+5.5 -5.5 R -5 R +5 -5 R",
    "changed and deleted": "+5 -5 R +5 +5 R",
    **{f"random {seed}": seed for seed in range(6)},
}


def steps_of(seed: int) -> str:
    chosen = random.Random(seed)
    minutes = (1, 2, 3, 2.5, 3.5, 3.25, 4, 5)
    return " ".join(
        chosen.choice((f"+{minute}", f"-{minute}", "R")) for minute in chosen.choices(minutes, k=15)
    )


@pytest.mark.parametrize("steps", HISTORIES.values(), ids=HISTORIES)
def test_each_version_is_known_since_the_refresh_of_bars_as_of(
    conn: Conn, steps: str | int
) -> None:
    catalog.apply(conn, [TWENTY])
    first = value(conn, "SELECT date_bin('20 minutes', now() - interval '1 hour', '2000-01-01')")
    volumes = itertools.count(1)

    def put(minute: float) -> None:
        conn.execute(_PUT, (first + timedelta(minutes=minute), next(volumes)))

    for minute in range(6):
        put(minute)
    refresh(conn)
    for step in (steps if isinstance(steps, str) else steps_of(steps)).split():
        if step == "R":
            refresh(conn)
        elif step[0] == "+":
            put(float(step[1:]))
        else:
            ts = first + timedelta(minutes=float(step[1:]))
            conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [ts])
        known = bars_at_each_number(conn)
        for minute, view in ((3, "features_1m"), (5, "features_1m"), (5, TWENTY.name)):
            check_bars(conn, why(conn, "A", first + minute * MINUTE, view), known)


@pytest.mark.parametrize("forget", ["TRUNCATE ohlcv_1m", "SELECT * FROM forget_symbol('A')"])
def test_nothing_is_known_since_a_refresh_before_all_bars_were_deleted(
    conn: Conn, forget: str
) -> None:
    first = ago(30)
    add_bars(conn, first, 10)
    before = refresh(conn)
    conn.execute(forget.replace("forget_", "feature_platform.forget_").encode())
    add_bars(conn, first, 10)
    if forget.startswith("TRUNCATE"):  # the old row still stands
        assert {one.no for one in why(conn, "A", first + 5 * MINUTE).bars} == {None}
    after = refresh(conn)
    found = why(conn, "A", first + 5 * MINUTE)
    assert [(one.ts, one.no) for one in found.bars] == [(first + 5 * MINUTE, after)]
    assert after > before


def test_changed_bars_of_a_wide_bucket_are_listed_before_others(conn: Conn, database: str) -> None:
    catalog.apply(conn, [CANDLES])
    first = value(conn, "SELECT date_bin('1 hour', now() - interval '2 hours', '2000-01-01')")
    add_bars(conn, first, 60)
    refresh(conn)
    found = why(conn, "A", first, CANDLES.name)
    assert (found.bars, found.more) == ([], 0)
    assert found.unchanged is not None
    assert found.unchanged.bars == 60
    change(conn, first, 100)
    refresh(conn)
    found = why(conn, "A", first, CANDLES.name)
    assert [one.vol for one in found.bars] == [100, 1]
    assert found.unchanged is not None
    assert (found.unchanged.bars, found.unchanged.first) == (59, first + MINUTE)
    conn.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts < %s", [first + (SHOWN + 2) * MINUTE])
    refresh(conn)
    found = why(conn, "A", first, CANDLES.name)
    assert (len({one.ts for one in found.bars}), found.more) == (SHOWN, 2)
    done = run_on(database, "why", "A", first.isoformat(), "--view", CANDLES.name)
    assert done.stdout.endswith("and 2 earlier bars\n"), done.stdout
    assert "28 bars of this bucket did not change" in done.stdout


def test_many_versions_are_shown_and_the_others_counted(conn: Conn, database: str) -> None:
    first = ago(30)
    add_bars(conn, first, 5)
    refresh(conn)
    numbers = []
    for vol in range(21):
        change(conn, first + 4 * MINUTE, 100 + vol)
        numbers.append(refresh(conn))
    done = run_on(database, "why", "A", (first + 4 * MINUTE).isoformat())
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= WIDTH, done.stdout
    headers = [line for line in lines if line.startswith("column")]
    shown = [int(number) for line in headers for number in re.findall(r"refresh (\d+)", line)]
    assert shown == numbers[:0:-1]
    assert "and 2 earlier versions of the row" in lines


def test_times_since_when_bars_are_known_have_one_form(
    conn: Conn, database: str, history: datetime
) -> None:
    conn.execute("UPDATE feature_platform.refresh SET known_by = date_trunc('minute', known_by)")
    done = run_on(database, "why", "A", history.isoformat())
    lines = done.stdout.partition("known since (UTC)")[2].splitlines()[1:]
    assert all(re.search(r"waits +-$|:\d\d:00$", line.rstrip()) for line in lines), done.stdout
    assert sum(line.rstrip().endswith("-") for line in lines) >= 2  # the change and the deletion


def lines_of_bar(output: str, minute: datetime) -> list[str]:
    """Return the lines of a bar in the table of bars."""
    time = f"{minute.astimezone(UTC):%m-%d %H:%M} "
    return [line for line in output.splitlines()[1:] if time in line[:17]]


@pytest.mark.parametrize("price", ["open", "high", "low", "close"])
def test_a_correction_of_any_price_is_shown(conn: Conn, database: str, price: str) -> None:
    minute = ago(30)
    add_bars(conn, minute, 3)
    refresh(conn)
    corrected = {"open": 9.5, "high": 12.5, "low": 8.5, "close": 9.75}[price]
    statement = f"UPDATE ohlcv_1m SET {price} = %s WHERE ts = %s"  # noqa: S608
    conn.execute(statement.encode(), (corrected, minute))
    refresh(conn)
    done = run_on(database, "why", "A", minute.isoformat())
    (header,) = (line for line in done.stdout.splitlines() if line.startswith("bar (UTC)"))
    shown = [one for one in ("open", "high", "low") if one == price]
    assert header.split()[2:5] == [*shown, "close", "vol", "source"][:3]
    new, old = lines_of_bar(done.stdout, minute)
    place = header.index(price) + len(price)
    assert new[:place].split()[-1] == str(corrected)
    assert old[:place].split()[-1] == {"open": "10", "high": "12", "low": "9", "close": "10"}[price]
    assert max(map(len, (header, new, old))) <= WIDTH


_PRICES = "UPDATE ohlcv_1m SET open = %s, high = %s, low = %s, close = %s, vol = %s"


@pytest.mark.parametrize(
    ("prices", "has_source"),
    [
        ((67234.12, 67299.99, 67111.01, 67250.5, 12.34567), True),
        ((67234.125, 67299.9905, 67111.0125, 67250.5, 1234.56789012), False),
        ((0.1 + 0.2, 2 / 3, 0.1, 0.1 + 0.2, 1e9 / 7), None),
    ],
)
def test_corrections_of_all_prices_are_readable_at_80_columns(
    conn: Conn, database: str, prices: tuple[float, ...], has_source: bool | None
) -> None:
    minute = ago(30)
    add_bars(conn, minute, 1)
    refresh(conn)
    conn.execute(_PRICES, prices)
    last = refresh(conn)
    done = run_on(database, "why", "A", minute.isoformat())
    bars = done.stdout.partition("not refreshed:\n")[2]
    assert max(map(len, bars.splitlines())) <= WIDTH, done.stdout
    numbers = [str(price) for price in prices]
    if has_source is None:  # no table fits
        newest = dict(line.split(None, 1) for line in bars.splitlines()[:6] if line[:3] != "bar")
        assert [newest[name] for name in ("open", "high", "low", "close", "vol")] == numbers
        return
    line = lines_of_bar(bars, minute)[0]
    assert line.split()[2:7] == numbers
    assert ("stream" in line) == has_source
    # The time of each refresh follows.
    times = [line.split()[0] for line in bars.partition("known since")[2].splitlines()[1:]]
    assert times == [str(last), str(last - 1)]


def test_numbers_that_differ_look_different(conn: Conn, database: str) -> None:
    minute = ago(30)
    add_bars(conn, minute - MINUTE, 2)
    conn.execute("UPDATE ohlcv_1m SET high = 200, close = 100.05, vol = 123456789012.7")
    refresh(conn)
    conn.execute("UPDATE ohlcv_1m SET close = 100.050001 WHERE ts = %s", [minute])
    refresh(conn)
    done = run_on(database, "why", "A", minute.isoformat())
    new, old = lines_of_bar(done.stdout, minute)
    assert new.split()[2:4] == ["100.050001", "123456789012.7"]
    assert old.split()[2:4] == ["100.05", "123456789012.7"]
    rows = dict(line.split(None, 1) for line in done.stdout.splitlines() if line)
    assert rows["last_close"].split() == ["100.050001", "100.05"]
    assert rows["vol"].split() == ["1.234568e+11"] * 2  # both versions have it


def test_wide_values_of_rows_stay_within_80_columns(conn: Conn, database: str) -> None:
    minute = ago(30)
    add_bars(conn, minute, 1)
    for step in range(4):
        vol = 1e-50 / 3 * (1 + step * 1e-12)
        change(conn, minute, vol)
        refresh(conn)
    done = run_on(database, "why", "A", minute.isoformat())
    lines = done.stdout.partition("1 bar of")[0].splitlines()
    assert max(map(len, lines)) <= WIDTH, done.stdout
    shown = [number for line in lines if line.startswith("vol ") for number in line.split()[1:]]
    assert len(set(shown)) == 4


def test_each_reason_for_which_there_is_no_row_has_its_error(
    conn: Conn, database: str, history: datetime
) -> None:
    def error(minute: datetime, symbol: str = "A", view: str = "features_1m") -> str:
        with conn.transaction():
            conn.execute("SET LOCAL ROLE feature_platform_reader")
            with pytest.raises(UserError) as caught:
                why(conn, symbol, minute, view)
        return str(caught.value)

    first = history - 20 * MINUTE
    add_bars(conn, history + 20 * MINUTE, 1)
    still_open = ago(-1)  # for a minute at least
    add_bars(conn, still_open, 1, ("A", "BTC/USDT"))
    assert "no bars of 'BTC/USD' (did you mean 'BTC/USDT'?)" in error(history, "BTC/USD")
    for minute in (still_open, ago(-60), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)):
        assert re.search(r"no row of 'A' at .* yet: the bucket closes at ", error(minute))
    assert error(still_open, view=CANDLES.name).startswith("candles_1h has no row of 'A' at")
    closes = f"{(still_open + MINUTE).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    assert f" closes at {closes}, and the time is " in error(still_open)
    for view in ("features_1m", CANDLES.name):
        assert "first bar of this symbol is of" in error(first - 90 * MINUTE, view=view)
    assert f"of {first.astimezone(UTC):%Y-%m-%d %H:%M} UTC" in error(first - MINUTE)
    assert "wait for their first refresh; run `feature-platform refresh`" in error(
        history + 20 * MINUTE
    )
    assert "this bucket has no bars; `feature-platform gaps`" in error(history + 15 * MINUTE)
    assert "is before 1970" in error(datetime.min.replace(tzinfo=UTC), view=CANDLES.name)
    line = rejection(run_on(database, "why", "A", (history + 15 * MINUTE).isoformat()))
    assert "this bucket has no bars" in line


def test_bars_that_wait_and_rows_that_the_retention_deletes_have_their_errors(conn: Conn) -> None:
    catalog.apply(conn, [CANDLES])
    old = ago(5 * 1440)
    add_bars(conn, old, 5)
    add_bars(conn, ago(150), 5)
    for view in ("features_1m", CANDLES.name):
        with pytest.raises(UserError, match=f"^{view} .* wait for their first refresh"):
            why(conn, "A", old, view)
    conn.execute("SELECT set_features_1m_retention(bars => '9 days', features => '2 days')")
    conn.execute("CALL feature_platform.apply_retention()")
    for view in ("features_1m", CANDLES.name):
        with pytest.raises(UserError, match=f"^{view} .*: the retention keeps rows from 20"):
            why(conn, "A", old, view)


def test_help_names_the_zone_and_the_bucket() -> None:
    done = run("why", "--help", COLUMNS="200")
    assert "Show a row, its earlier versions, and the versions of its bars." in done.stdout
    assert re.search(r"SYMBOL .*such as BTC/USDT", done.stdout)
    assert re.search(r"MINUTE .*in UTC without an offset", done.stdout)
    assert "the bucket that holds the minute" in done.stdout
