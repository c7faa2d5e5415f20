"""Guards against imports that training frames count as known too early or too late."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from feature_platform import read_features, training_set
from feature_platform.importer import import_bars
from feature_platform.views import FeatureView, bar, catalog
from feature_platform_tests.fix_knowledge import MINUTE, START, Past
from feature_platform_tests.fix_processes import run_on
from feature_platform_tests.fix_views import CANDLES, SHORT, add_bars

AFTER = START + timedelta(days=3)
NOW = START + timedelta(days=30)
CLOSE = "2 seconds after close"
VIEWS = {"features_1m": 1, SHORT.name: 1, CANDLES.name: 60}
DAY = FeatureView("day", "1 day", {"vol": bar.vol})
DAY_MINUTES = 1440

Write = Callable[..., Path]


@pytest.fixture
def past(new_past: Past) -> Past:
    """Return a past without bars."""
    return new_past


@pytest.fixture
def bars_file(tmp_path: Path) -> Write:
    """Return a function that writes a file of bars of some minutes."""

    def write(minutes: range, close: float = 9, name: str = "bars.csv") -> Path:
        path = tmp_path / name
        rows = [
            f"{(START + minute * MINUTE).isoformat()},10,20,5,{close + minute % 3},{minute % 7}"
            for minute in minutes
        ]
        path.write_text("\n".join(["ts,open,high,low,close,vol", *rows]) + "\n", encoding="utf-8")
        return path

    return write


def known(view: str = "features_1m") -> set[int]:
    """Return the minutes of all rows of symbol A that were known in time."""
    frame = read_features("A", START, AFTER, view=view, as_of=CLOSE)
    return {(bucket - START) // MINUTE for bucket in frame.index}


def at_close(view: str) -> pd.DataFrame:
    """Return the rows of symbol A that were known in time."""
    frame: pd.DataFrame = read_features("A", START, AFTER, view=view, as_of=CLOSE)
    return frame


def trained(features: list[str], *minutes: int) -> pd.DataFrame:
    """Return features as they were known 5 seconds after the starts of some minutes."""
    times = [START + minute * MINUTE + timedelta(seconds=5) for minute in minutes]
    frame: pd.DataFrame = training_set(pd.DataFrame({"symbol": "A", "time": times}), features, {})
    return frame.loc[:, features]


@pytest.mark.parametrize("built", ["before", "after"])
def test_imported_history_is_known_at_close_in_every_view(
    past: Past, bars_file: Write, built: str
) -> None:
    if built == "before":
        catalog.apply(past.conn, [SHORT, CANDLES])
    past.set_clock(NOW)
    import_bars(past.conn, [bars_file(range(60, 300))], symbol="A")
    past.refresh(NOW)
    if built == "after":
        past.set_clock(NOW + MINUTE)
        catalog.apply(past.conn, [SHORT, CANDLES])
        past.refresh(NOW + MINUTE)
    for view, every in VIEWS.items():
        assert known(view) == set(range(60, 300, every)), view
        frame = read_features("A", START, AFTER, view=view, as_of=CLOSE)
        assert frame.equals(read_features("A", START, AFTER, view=view))
        assert read_features("A", START, AFTER, view=view, as_of=NOW + 2 * MINUTE).equals(frame)
    numbers = "SELECT count(*) FROM feature_platform.known_at_close WHERE no IS NULL"
    assert past.conn.execute(numbers).fetchone() == (0,)


def test_rows_that_wait_for_a_refresh_are_flagged_later(past: Past, bars_file: Write) -> None:
    past.set_clock(NOW)
    import_bars(past.conn, [bars_file(range(2000))], symbol="A")
    for start in (1500, 700):
        window = (START + start * MINUTE, AFTER)
        past.conn.execute("CALL refresh_features_1m(%s, %s)", window)
        waiting = """
            SELECT upper(minutes), lower(k.minutes) FROM feature_platform.known_at_close k
            WHERE k.no IS NULL
        """
        assert past.conn.execute(waiting).fetchall() == [(START + start * MINUTE, START)]
        assert known() == set(range(start, 2000))
    past.refresh(NOW)
    assert past.conn.execute(waiting).fetchall() == []
    number = past.conn.execute("SELECT max(no) FROM feature_platform.known_at_close").fetchone()
    newest = past.conn.execute("SELECT max(no) FROM feature_platform.refresh").fetchone()
    assert number == newest
    assert known() == set(range(2000))


def test_an_import_that_is_known_now_is_not_known_at_close(past: Past, bars_file: Write) -> None:
    past.set_clock(NOW)
    import_bars(past.conn, [bars_file(range(100))], symbol="A", known_at="now")
    past.refresh(NOW)
    assert known() == set()


def test_the_command_line_flags_an_import(past: Past, bars_file: Write) -> None:
    url = past.conn.info.dsn
    past.conn.execute("RESET feature_platform.clock")
    for known_at, expected in (("now", set()), ("close", set(range(100)))):
        minutes = range(100) if known_at == "close" else range(100, 200)
        options = ("--symbol", "A", "--known-at", known_at)
        done = run_on(url, "import", str(bars_file(minutes)), *options)
        assert done.returncode == 0, done.stderr
        past.conn.execute("CALL refresh_features_1m(NULL, NULL)")
        assert known() == expected


def test_the_summary_counts_the_bars_that_are_not_known_at_close(
    past: Past, bars_file: Write
) -> None:
    past.conn.execute("RESET feature_platform.clock")
    url = past.conn.info.dsn
    line = (
        "known at close: {} of {} bars; the others are known since they were stored, as all bars"
        " from the first live one on are (docs/importing.md)"
    )

    def summary(minutes: range, *options: str) -> list[str]:
        done = run_on(url, "import", str(bars_file(minutes)), "--symbol", "A", *options)
        assert done.returncode == 0, done.stderr
        return [row for row in done.stdout.splitlines() if row.startswith("known at close")]

    assert summary(range(120, 150), "--known-at", "now") == []
    assert summary(range(120, 150)) == [line.format(0, 30)]  # unchanged bars
    assert summary(range(120, 150), "--dry-run") == []
    assert summary(range(60, 120)) == []
    assert summary(range(60, 120)) == []  # flagged before
    assert summary(range(180, 200)) == [line.format(0, 20)]  # after the first live bar
    assert summary(range(50, 200)) == [line.format(70, 150)]


def test_the_summary_of_many_symbols_counts_each(past: Past, tmp_path: Path) -> None:
    past.set_clock(START + MINUTE)
    past.write("B", 30)  # a live bar
    past.set_clock(NOW)
    path = tmp_path / "bars.csv"
    rows = [
        f"{symbol},{(START + minute * MINUTE).isoformat()},10,20,5,9,1"
        for symbol in "AB"
        for minute in range(60)
        if (symbol, minute) != ("B", 30)
    ]
    path.write_text("\n".join(["symbol,ts,open,high,low,close,vol", *rows]), encoding="utf-8")
    (report,) = import_bars(past.conn, [path]).files
    assert (report.bars, report.unflagged) == (119, 29)
    past.refresh(NOW)
    assert known() == set(range(60))


@pytest.mark.parametrize("wrong", ["close", "now"])
def test_a_wrong_flag_is_repaired_by_forget_and_a_new_import(
    past: Past, bars_file: Write, wrong: str
) -> None:
    right = {"close": "now", "now": "close"}[wrong]
    past.conn.execute("RESET feature_platform.clock")
    url = past.conn.info.dsn
    path = str(bars_file(range(100)))

    def run(*arguments: str) -> None:
        done = run_on(url, *arguments)
        assert done.returncode == 0, done.stderr

    run("import", path, "--symbol", "A", "--known-at", wrong)
    run("refresh")
    run("import", path, "--symbol", "A", "--known-at", right)  # changes no flag
    run("refresh")
    all_minutes = set(range(100))
    assert known() == (all_minutes if wrong == "close" else set())
    run("forget", "A", "--yes")
    run("import", path, "--symbol", "A", "--known-at", right)
    run("refresh")
    assert known() == (all_minutes if right == "close" else set())


def test_a_later_correction_of_an_import_is_not_known_at_close(
    past: Past, bars_file: Write
) -> None:
    past.set_clock(NOW)
    import_bars(past.conn, [bars_file(range(200))], symbol="A")
    past.refresh(NOW)
    imported = read_features("A", START, AFTER)
    past.set_clock(NOW + MINUTE)
    past.write("A", 50, close=15)
    past.write("A", 250)
    past.delete("A", 60)
    past.refresh(NOW + MINUTE)
    assert not read_features("A", START, AFTER).equals(imported)
    assert read_features("A", START, AFTER, as_of=CLOSE).equals(imported)


EARLY = {"early_1m": (SHORT, "1 minute"), "early_1h": (CANDLES, "1 hour")}


@pytest.mark.parametrize("seed", range(6))
def test_a_view_that_is_built_after_corrections_has_the_versions_of_an_older_one(
    past: Past, bars_file: Write, seed: int
) -> None:
    rng = random.Random(seed)
    catalog.apply(
        past.conn, [FeatureView(name, every, of.columns) for name, (of, every) in EARLY.items()]
    )
    past.set_clock(NOW)
    files = [bars_file(range(60, 100), name="1"), bars_file(range(120, 300), name="2")]
    import_bars(past.conn, files, symbol="A")
    past.refresh(NOW)
    for hour in range(1, 5):
        now = NOW + timedelta(hours=hour)
        past.set_clock(now)
        for _ in range(rng.choice([1, 2, 3])):
            minute = rng.choice([50, 60, 70, 90, 110, 135, rng.randrange(61, 299)])
            if rng.random() < 0.3:
                past.delete("A", minute)
            else:
                past.write("A", minute, close=rng.choice([9, 12, 15]), vol=rng.choice([1, 1000]))
        past.refresh(now)
    past.set_clock(NOW + timedelta(days=1))
    catalog.apply(past.conn, [SHORT, CANDLES])
    past.refresh(NOW + timedelta(days=1))
    past.set_clock(NOW + timedelta(days=90))
    hours = 30 * 24 + rng.choice([-4, -2, -1, 0, 1, 2, 3])
    for early, (view, _) in EARLY.items():
        for delay in ("2 seconds", "40 days", f"{hours} hours"):
            as_of = f"{delay} after close"
            frames = [
                read_features("A", START, AFTER, view=one, as_of=as_of)
                for one in (early, view.name)
            ]
            assert_frame_equal(frames[0], frames[1])
        columns = list(view.columns)
        events = [rng.randrange(190, 320) for _ in range(100)]
        frames = [
            trained([f"{one}.{column}" for column in columns], *events).set_axis(columns, axis=1)
            for one in (early, view.name)
        ]
        assert_frame_equal(frames[0], frames[1])


def test_a_flag_does_not_cover_bars_that_a_stream_brought(past: Past, bars_file: Write) -> None:
    for minute in range(10, 100):
        if minute != 40:
            past.write("A", minute, close=12)
    past.refresh(START + 100 * MINUTE + timedelta(seconds=1))
    live = read_features("A", START, AFTER, as_of=CLOSE)
    assert list(live.index) == [START + 99 * MINUTE]
    past.set_clock(NOW)
    import_bars(past.conn, [bars_file(range(150))], symbol="A")
    past.refresh(NOW)
    # The live system begins at minute 10: it did not have minutes 40 and 100 to 149.
    assert known() == {*range(10), 99}
    frame = read_features("A", START, AFTER, as_of=CLOSE)
    assert frame["last_close"][START + 99 * MINUTE] == 12
    # The bars of the import are corrected by another import: they stay known at close.
    past.set_clock(NOW + MINUTE)
    import_bars(past.conn, [bars_file(range(150), 11, "again.csv")], symbol="A")
    past.refresh(NOW + MINUTE)
    frame = read_features("A", START, AFTER, as_of=CLOSE)
    assert set(frame.index) == {START + m * MINUTE for m in (*range(10), 99)}
    closes = frame["last_close"]
    assert closes[START + 5 * MINUTE] == 13
    assert closes[START + 99 * MINUTE] == 12


def test_an_open_bucket_does_not_keep_a_flag_open(past: Past, bars_file: Write) -> None:
    features = ["features_1m.n_1d", "short_1m.mean_5m", "day.vol"]
    events = (DAY_MINUTES + 55, 2 * DAY_MINUTES + 30)
    catalog.apply(past.conn, [SHORT, DAY])
    end = 2 * DAY_MINUTES + 300
    now = START + end * MINUTE + timedelta(seconds=30)
    past.set_clock(now)
    import_bars(past.conn, [bars_file(range(end))], symbol="A")
    past.refresh(now)
    imported = {view: at_close(view) for view in ("features_1m", SHORT.name, DAY.name)}
    assert list(imported[DAY.name].index) == [START, START + timedelta(days=1)]
    joined = trained(features, *events)
    assert not joined.isna().any(axis=None)
    # Corrections while the bucket of the newest day is open
    past.set_clock(now + 60 * MINUTE)
    past.write("A", 50, vol=1001)
    past.write("A", DAY_MINUTES + 53, vol=2002)
    past.refresh(now + 60 * MINUTE)
    for late in (timedelta(hours=1), timedelta(days=1)):
        past.refresh(now + late)
        for view, frame in imported.items():
            assert not read_features("A", START, AFTER, view=view).equals(frame), view
            assert at_close(view).equals(frame), view
        assert trained(features, *events).equals(joined)


def test_a_missing_minute_of_a_live_system_is_not_flagged(past: Past, bars_file: Write) -> None:
    features = ["features_1m.n_1d", "short_1m.mean_5m"]
    events = (51, 52, 54)
    catalog.apply(past.conn, [SHORT])
    for minute in range(60):
        if minute != 50:
            past.write("A", minute)
        if minute >= 45:
            past.refresh(START + (minute + 1) * MINUTE + timedelta(seconds=1))
    live = {view: at_close(view) for view in ("features_1m", SHORT.name)}
    joined = trained(features, *events)
    past.set_clock(NOW)
    past.write("A", 48, vol=5001)
    past.refresh(NOW)
    past.set_clock(NOW + MINUTE)
    import_bars(past.conn, [bars_file(range(50, 51))], symbol="A")
    past.refresh(NOW + MINUTE)
    for view, frame in live.items():
        assert START + 50 * MINUTE in read_features("A", START, AFTER, view=view).index, view
        assert at_close(view).equals(frame), view
    assert trained(features, *events).equals(joined)


def test_history_after_a_corrected_bar_is_not_flagged(past: Past, bars_file: Write) -> None:
    past.set_clock(NOW)
    import_bars(past.conn, [bars_file(range(100))], symbol="A")
    past.refresh(NOW)
    past.set_clock(NOW + MINUTE)
    past.write("A", 95, vol=5001)
    past.refresh(NOW + MINUTE)
    past.set_clock(NOW + 2 * MINUTE)
    import_bars(past.conn, [bars_file(range(100, 200))], symbol="A")
    past.refresh(NOW + 2 * MINUTE)
    assert known() == set(range(100))
    # Another import replaces the correction: its bars are known at close, later ones still not.
    past.set_clock(NOW + 3 * MINUTE)
    import_bars(past.conn, [bars_file(range(100), 11, "again.csv")], symbol="A")
    past.refresh(NOW + 3 * MINUTE)
    assert known() == set(range(100))
    assert at_close("features_1m")["last_close"][START + 95 * MINUTE] == 13


@pytest.mark.parametrize("corrected", [False, True])
def test_older_history_counts_in_newer_history_that_was_imported_first(
    past: Past, bars_file: Write, corrected: bool
) -> None:
    features = ["features_1m.n_1d", "short_1m.mean_5m", "short_1m.std_10m"]
    events = (50, 102, 105, 200)
    catalog.apply(past.conn, [SHORT])
    past.set_clock(NOW)
    import_bars(past.conn, [bars_file(range(100, 300))], symbol="A")
    past.refresh(NOW + MINUTE)
    newer = {view: at_close(view) for view in ("features_1m", SHORT.name)}
    alone = trained(features, *events)
    past.set_clock(NOW + 2 * MINUTE)
    if corrected:
        past.write("A", 250, vol=5001)
        past.refresh(NOW + 2 * MINUTE)
    import_bars(past.conn, [bars_file(range(100))], symbol="A")
    past.refresh(NOW + 3 * MINUTE)
    assert known() == set(range(300))
    joined = trained(features, *events)
    for view, frame in newer.items():
        if corrected:  # the refresh of the older import has rows with the correction, too
            assert at_close(view)[100:].equals(frame), view
            assert joined[1:].equals(alone[1:])
        else:
            assert at_close(view).equals(read_features("A", START, AFTER, view=view)), view
            assert not at_close(view)[100:].equals(frame), view
            assert joined["features_1m.n_1d"].tolist() == [50, 102, 105, 200]


def test_a_replay_of_an_import_flags_nothing(past: Past, bars_file: Write) -> None:
    add_bars(past.conn, START + 60 * MINUTE, 50, ("A",))
    path = bars_file(range(50, 60))
    past.set_clock(NOW)
    import_bars(past.conn, [path], symbol="A")
    past.refresh(NOW)
    flags = "SELECT symbol, minutes, no FROM feature_platform.known_at_close"
    before = past.conn.execute(flags).fetchall()
    assert len(before) == 1
    import_bars(past.conn, [path], symbol="A")
    past.refresh(NOW + MINUTE)
    assert past.conn.execute(flags).fetchall() == before
