"""Guards against builds from the lake that differ from the database, or replace its truth."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from feature_platform.cli.app import app
from feature_platform.errors import UserError
from feature_platform.lake.bars import newest_bars
from feature_platform.lake.build import Built, build
from feature_platform.lake.history import check_builds, take_history
from feature_platform.lake.tasks import Computed, Task, compute
from feature_platform.views import (
    FeatureView,
    aggregate,
    bar,
    catalog,
    corr,
    ema,
    lag,
    ln,
    mean,
    std,
)
from feature_platform_tests.fix_lake import DAY, FIRST, SYMBOLS, Lake
from feature_platform_tests.fix_processes import PATIENCE
from feature_platform_tests.fix_views import CANDLES, check_views, rows_of, state_of

RETURN = ln(bar.close / lag(bar.close))
VIEW = FeatureView(
    "momentum_1m",
    "1 minute",
    {
        "return_1h": ln(bar.close / lag(bar.close, "1 hour")),
        "volatility_2h": std(RETURN, "2 hours"),
        "corr_1h": corr(RETURN, bar.vol, "1 hour"),
        "mean_1d": mean(bar.vol, "1 day"),
        "macd": ema(bar.close, "12 minutes") - ema(bar.close, "26 minutes"),
        "median_10m": aggregate("percentile_cont(0.5)", bar.close, "10 minutes"),
    },
)
COLUMNS = ", ".join(VIEW.columns)


def build_of(lake: Lake, view: FeatureView, **options: Any) -> Built:
    options.setdefault("workers", 1)
    return build(view, newest_bars(), uri_of(lake, view), **options)


def uri_of(lake: Lake, view: FeatureView) -> str:
    return str(lake.path / "_builds" / view.name)


def built_rows(lake: Lake, view: FeatureView) -> list[tuple[Any, ...]]:
    """Return the rows of a build, with the bits of each value."""
    from deltalake import DeltaTable

    rows = DeltaTable(uri_of(lake, view)).to_pyarrow_table()
    kept = rows.select(["symbol", "bucket", *view.columns])
    found = kept.sort_by([("symbol", "ascending"), ("bucket", "ascending")]).to_pydict()
    return [(one[0], one[1], *map(repr, one[2:])) for one in zip(*found.values(), strict=True)]


def database_rows(conn: psycopg.Connection[Any], view: FeatureView) -> list[tuple[Any, ...]]:
    catalog.apply(conn, [view])
    catalog.refresh_views(conn)
    return rows_of(conn, ", ".join(view.columns), view.name)


@pytest.mark.parametrize("view", [VIEW, CANDLES], ids=lambda view: view.name)
def test_a_build_equals_the_rows_of_the_database(lake: Lake, view: FeatureView) -> None:
    lake.sync()
    built = build_of(lake, view)
    rows = built_rows(lake, view)
    assert (built.rows, built.symbols) == (len(rows), len(SYMBOLS))
    assert rows == database_rows(lake.conn, view)


def test_parts_of_a_build_equal_the_whole(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of a few hours read their look-back across a gap of a day, and give the same rows."""
    lake.conn.execute(
        "DELETE FROM ohlcv_1m WHERE symbol = 'A' AND ts >= %s AND ts < %s",
        [FIRST + DAY, FIRST + 2 * DAY + timedelta(minutes=7)],
    )
    lake.refresh()
    lake.sync()
    rows = database_rows(lake.conn, VIEW)
    monkeypatch.setattr("feature_platform.lake.tasks._TASK_ROWS", 300)
    monkeypatch.setattr("feature_platform.lake.tasks._LOOK_BACKS", 0)
    some = {"start": FIRST + DAY / 2, "end": FIRST + 3 * DAY, "symbols": ["A", "it's"]}
    assert build_of(lake, VIEW, **some).tasks > 20
    assert built_rows(lake, VIEW) == [
        row for row in rows if row[0] != "B" and FIRST + DAY / 2 <= row[1] < FIRST + 3 * DAY
    ]


def test_columns_beyond_128_bits_are_named(lake: Lake) -> None:
    lake.sync()
    assert set(build_of(lake, VIEW).wide) == {"volatility_2h", "corr_1h"}


def test_a_build_is_the_history_of_a_view(lake: Lake) -> None:
    """The rows come from the build; those that a changed bar reaches are computed."""
    lake.sync()
    build_of(lake, VIEW)
    corrected = FIRST + 2 * DAY + timedelta(hours=3)
    lake.correct("A", corrected)
    lake.conn.execute("DELETE FROM ohlcv_1m WHERE symbol = 'B' AND ts = %s", [corrected])
    lake.refresh()
    catalog.apply(lake.conn, [VIEW])
    # A change that no refresh has processed yet.
    statement = "UPDATE ohlcv_1m SET vol = 77 WHERE symbol = 'it''s' AND ts = %s"
    lake.conn.execute(statement, [corrected])
    taken = take_history(lake.conn, VIEW, uri_of(lake, VIEW))
    assert taken.rows + taken.left == len(SYMBOLS) * 4 * 1440
    reached = 1440 + 1
    assert 3 * 200 <= taken.left <= 3 * reached
    catalog.refresh_views(lake.conn)
    lake.refresh()
    assert check_views(lake.conn) > 3 * 4 * 1440
    assert state_of(lake.conn, VIEW.name) == [(1, "live", True)]
    assert_as_computed(lake, VIEW)


def assert_as_computed(lake: Lake, view: FeatureView) -> None:
    """Fail unless the rows equal those of a database that computes all of them."""
    taken = rows_of(lake.conn, ", ".join(view.columns), view.name)
    catalog.drop(lake.conn, view.name)
    assert taken == database_rows(lake.conn, view)


def test_rows_after_a_build_go_on_from_it(lake: Lake) -> None:
    """New bars read the inner values that came with the build."""
    lake.sync()
    build_of(lake, VIEW)
    catalog.apply(lake.conn, [VIEW])
    take_history(lake.conn, VIEW, uri_of(lake, VIEW))
    catalog.refresh_views(lake.conn)
    for minute in range(4):
        lake.conn.execute(
            """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
               SELECT symbol, %s, 10, 12, 8, 9.5, 3.25 FROM unnest(%s::text[]) AS symbol""",
            [FIRST + 4 * DAY + timedelta(minutes=minute), list(SYMBOLS)],
        )
        lake.refresh()
    check_views(lake.conn)
    assert_as_computed(lake, VIEW)


def test_a_build_of_wide_buckets_is_a_history(lake: Lake) -> None:
    """The inner volume of a bucket is a decimal, the exact sum of its bars."""
    view = FeatureView(
        "hours", "1 hour", {"z": mean(bar.vol, "4 hours"), "c": lag(bar.close, 2)}, "15 minutes"
    )
    lake.sync()
    build_of(lake, view)
    catalog.apply(lake.conn, [view])
    inner = take_history(lake.conn, view, uri_of(lake, view))
    assert inner.left == 0
    catalog.refresh_views(lake.conn)
    check_views(lake.conn)
    assert_as_computed(lake, view)


def test_a_build_with_another_first_bar_is_not_taken(lake: Lake) -> None:
    """The warm-up counts from the first bar, so all rows of the symbol are computed."""
    lake.sync()
    build_of(lake, VIEW)
    lake.conn.execute("DELETE FROM ohlcv_1m WHERE symbol = 'A' AND ts = %s", [FIRST])
    lake.refresh()
    catalog.apply(lake.conn, [VIEW])
    taken = take_history(lake.conn, VIEW, uri_of(lake, VIEW))
    assert (taken.rows, taken.left) == (2 * 4 * 1440, 4 * 1440)
    catalog.refresh_views(lake.conn)
    check_views(lake.conn)
    assert_as_computed(lake, VIEW)


def test_a_build_of_another_declaration_is_rejected(lake: Lake) -> None:
    lake.sync()
    build_of(lake, VIEW)
    other = FeatureView(VIEW.name, "1 minute", {**VIEW.columns, "mean_1d": mean(bar.vol, "2 days")})
    directory = str(lake.path / "_builds")
    with pytest.raises(UserError, match=r"another declaration: mean_1d was mean\(bar.vol, "):
        check_builds([other], directory)
    with pytest.raises(UserError, match="choose another --output"):
        build_of(lake, other)
    with pytest.raises(UserError, match="has no build: make one with"):
        check_builds([CANDLES], directory)
    check_builds([VIEW], directory)


def test_a_build_of_no_bars_leaves_the_last_build(lake: Lake) -> None:
    lake.sync()
    build_of(lake, VIEW)
    for start, end in ((FIRST + DAY, FIRST), (FIRST + 99 * DAY, None), (None, FIRST)):
        with pytest.raises(UserError, match="the lake has no bars of these symbols between"):
            build_of(lake, VIEW, start=start, end=end)
    check_builds([VIEW], str(lake.path / "_builds"))


def test_an_aggregate_of_the_database_is_rejected(lake: Lake) -> None:
    lake.sync()
    own = FeatureView("own", "1 minute", {"x": aggregate("public.mine", bar.close, "9 minutes")})
    with pytest.raises(UserError, match=r"own.x: aggregate public.mine exists only in"):
        build_of(lake, own)


def test_a_killed_worker_leaves_the_last_build(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.sync()
    build_of(lake, VIEW)
    before = built_rows(lake, VIEW)
    monkeypatch.setenv("TEST_DIES_IN", str(lake.path / "died"))
    monkeypatch.setattr("feature_platform.lake.engines.compute", dies)
    monkeypatch.setattr("feature_platform.lake.tasks._TASK_ROWS", 2000)
    with pytest.raises(UserError, match="a worker process of the build was killed"):
        build_of(lake, VIEW, workers=2)
    assert built_rows(lake, VIEW) == before


def test_a_build_of_one_task_starts_no_process(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.sync()
    done: list[int] = []

    def noting(task: Task) -> Computed:
        done.append(os.getpid())
        return compute(task)

    monkeypatch.setattr("feature_platform.lake.engines.compute", noting)
    assert build_of(lake, VIEW, workers=2).rows == 3 * 4 * 1440
    assert done == [os.getpid()]


def dies(task: Task) -> Computed:
    """Compute a task, but kill the process at the first one of symbol B."""
    flag = Path(os.environ["TEST_DIES_IN"])
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(task)


def test_the_commands(lake: Lake, tmp_path: Path) -> None:
    lake.sync()
    file = tmp_path / "mine.py"
    file.write_text(
        "from feature_platform.views import FeatureView, bar, mean\n"
        'mine = FeatureView("mine_1m", "1 minute", {"m": mean(bar.vol, "5 minutes")})\n'
    )
    run = CliRunner()
    missing = run.invoke(app, ["views", "apply", str(file), "--history", "lake"])
    assert isinstance(missing.exception, UserError)
    assert catalog.list_views(lake.conn, "mine_1m") == []
    built = run.invoke(app, ["views", "build", str(file)])
    assert "mine_1m: 17,280 rows of 3 symbols in" in built.output
    applied = run.invoke(app, ["views", "apply", str(file), "--history", "lake"])
    assert "mine_1m: 17,280 rows from the lake\n" in applied.output
    assert state_of(lake.conn, "mine_1m") == [(1, "live", True)]
    check_views(lake.conn)
    unknown = run.invoke(app, ["views", "build", str(file), "--symbol", "a"])
    assert str(unknown.exception) == "the lake has no bars of 'a' (did you mean 'A'?)"


def test_a_history_is_taken_beside_refreshes_and_writers(
    lake: Lake, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bars change and are refreshed meanwhile; no change is lost under a row of the build."""
    monkeypatch.setattr("feature_platform.lake.history._SLICE_ROWS", 200)
    lake.sync()
    build_of(lake, VIEW)
    catalog.apply(lake.conn, [VIEW])
    begun, over = threading.Event(), threading.Event()

    def write() -> None:
        random = Random(1)
        with psycopg.connect(database, autocommit=True) as other:
            while not over.is_set():
                moment = FIRST + random.randrange(4 * 1440) * timedelta(minutes=1)
                other.execute(
                    "UPDATE ohlcv_1m SET close = 8 + %s WHERE symbol = %s AND ts = %s",
                    [random.random(), random.choice(SYMBOLS), moment],
                )

    def refresh() -> None:
        with psycopg.connect(database, autocommit=True) as other:
            while not over.is_set():
                other.execute("CALL refresh_features_1m(NULL, NULL)")
                other.execute(
                    """SELECT feature_platform.view_slice(id, '-infinity', 'infinity',
                                                          slice_rows => 50)
                         FROM feature_platform.feature_view"""
                )
                begun.set()

    with ThreadPoolExecutor() as pool:
        beside = [pool.submit(write), pool.submit(refresh)]
        try:
            assert begun.wait(PATIENCE)
            taken = take_history(lake.conn, VIEW, uri_of(lake, VIEW))
        finally:
            over.set()
        for one in beside:
            one.result()
    assert taken.rows > 0
    lake.refresh()
    catalog.refresh_views(lake.conn)
    check_views(lake.conn)
    assert_as_computed(lake, VIEW)
