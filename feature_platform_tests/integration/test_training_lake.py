"""Guards against training sets from the lake that differ from those of the database."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from feature_platform import forward, forward_return, training_set
from feature_platform.errors import UserError
from feature_platform.importer import import_bars
from feature_platform.lake.sync import sync
from feature_platform.lake.training import Joined, TrainingTask, join
from feature_platform.settings import get_settings
from feature_platform.tables import FEATURES
from feature_platform.views import catalog
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_knowledge import MINUTE, SECOND, START, Past, live_past
from feature_platform_tests.fix_views import CANDLES, SHORT, refresh_all

DAY = timedelta(days=1)
SYMBOLS = ("A", "B", "C", "D")
LATE = replace(SHORT, name="late_1m")
COLUMNS = [
    *(f"features_1m.{name}" for name in FEATURES),
    *(f"{view.name}.{name}" for view in (SHORT, CANDLES, LATE) for name in view.columns),
]
LABELS = {
    "return_15m": forward_return("15 minutes"),
    "vol_90s": forward("features_1m.vol", "90 seconds"),
    "close_2h": forward(f"{CANDLES.name}.close", "2 hours"),
}


@pytest.fixture(scope="module")
def past(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """Yield two days of a live past, of which the lake has the first one, but for a correction.

    C has imported history; D has bars on the second day only.
    """
    path = tmp_path_factory.mktemp("lake")
    with live_past(databases, 8) as past:
        with pytest.MonkeyPatch.context() as monkeypatch:
            configure(past, path, monkeypatch)
            file = path / "bars.csv"
            rows = [f"{(START + m * MINUTE).isoformat()},10,20,5,{6 + m % 9},{m % 7}"
                    for m in range(400) if m % 50 < 40]  # fmt: skip
            file.write_text(
                "\n".join(["ts,open,high,low,close,vol", *rows]) + "\n", encoding="utf-8"
            )
            past.set_clock(START + DAY)
            import_bars(past.conn, [file], symbol="C")
            past.refresh(START + DAY + SECOND)
            # The lake does not have the second day.
            rng = random.Random(8)
            for minute in range(1440, 1500):
                for symbol in "ABCD":
                    if rng.random() < 0.9:
                        past.write(symbol, minute, rng.randint(6, 19), rng.randint(0, 5))
                past.refresh(START + (minute + 1) * MINUTE + SECOND)
            for symbol, minute in (("C", 100), ("B", 30), ("C", 1450)):
                past.write(symbol, minute, 8, 2)
            past.delete("B", 70)
            past.refresh(START + 2 * DAY - MINUTE)
            past.set_clock(START + 2 * DAY)
            catalog.apply(past.conn, [SHORT, CANDLES, LATE])
            refresh_all(past.conn)
            past.set_clock(START + 2 * DAY + MINUTE)
            assert len(list(sync(past.conn, until=START + DAY))) == 5
            # The first day of A waits for a sync.
            for symbol, minute in (("A", 20), ("B", 1450)):
                past.write(symbol, minute, 7, 3)
            past.refresh(START + 2 * DAY + 2 * MINUTE)
        past.lake = path  # type: ignore[attr-defined]
        yield past


@pytest.fixture(autouse=True)
def configured(past: Past, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    configure(past, past.lake, monkeypatch)  # type: ignore[attr-defined]
    monkeypatch.setattr("feature_platform.lake.training_tasks._TASK_ROWS", 4000)
    yield
    get_settings.cache_clear()


def configure(past: Past, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the settings name this database and this lake."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", past.conn.info.dsn)
    monkeypatch.setenv("FEATURE_PLATFORM_LAKE", str(path))
    get_settings.cache_clear()


def events_of(count: int, seed: int) -> pd.DataFrame:
    """Return random events of both days; a third of them within seconds of a refresh."""
    rng = random.Random(seed)
    times = []
    for _ in range(count):
        minute = rng.choice([rng.randrange(4, 420), rng.randrange(1430, 1520), rng.randrange(2880)])
        second = rng.choice([rng.randrange(60_000), rng.randrange(3000), rng.randrange(3000)])
        times.append(START + minute * MINUTE + second * SECOND / 1000)
    return pd.DataFrame(
        {"symbol": rng.choices(SYMBOLS, k=count), "time": pd.to_datetime(times, utc=True)}
    )


def without_ray(work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    """Run tasks in this process."""
    return map(work, tasks)


def assert_same(events: pd.DataFrame) -> pd.DataFrame:
    """Assert that both engines give the same values; return them."""
    expected = training_set(events, COLUMNS, LABELS)
    found: pd.DataFrame = training_set(events, COLUMNS, LABELS, engine="ray")
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    return found


def test_tasks_give_the_values_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_platform.lake.engines.on_ray", without_ray)
    found = assert_same(events_of(3000, 1))
    assert found[[*COLUMNS, *LABELS]].notna().mean().gt(0.3).all()
    assert found[COLUMNS].isna().any().any()
    for place in range(0, 3000, 700):
        assert_same(found.iloc[[place]][["symbol", "time"]])


def test_rows_come_from_the_lake(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that only the lake has shows that it is read."""
    monkeypatch.setattr("feature_platform.lake.engines.on_ray", without_ray)
    time = pd.Timestamp(START + 205 * MINUTE + 3 * SECOND)
    events = pd.DataFrame({"symbol": "C", "time": [time]})
    features = ["features_1m.vol", "features_1m.volume_z"]
    expected = training_set(events, features, LABELS)
    past.conn.execute("CREATE TEMPORARY TABLE kept AS TABLE features_1m")
    past.conn.execute("DELETE FROM features_1m WHERE symbol = 'C' AND bucket < %s", [START + DAY])
    try:
        assert not training_set(events, features, LABELS).equals(expected)
        found = training_set(events, features, LABELS, engine="ray")
    finally:
        past.conn.execute("INSERT INTO features_1m TABLE kept ON CONFLICT DO NOTHING")
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_ray_needs_an_address_and_a_lake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="the engine ray needs"):
        training_set(events_of(3, 1), COLUMNS, LABELS, engine="ray")
    with pytest.raises(UserError, match="engine is 'database' or 'ray', not 'spark'"):
        training_set(events_of(3, 1), COLUMNS, LABELS, engine="spark")  # type: ignore[arg-type]
    monkeypatch.delenv("FEATURE_PLATFORM_LAKE")
    get_settings.cache_clear()
    with pytest.raises(UserError, match="no lake is configured"):
        training_set(events_of(3, 1), COLUMNS, LABELS, engine="ray")


@pytest.mark.slow
# Ray's own: it leaves sockets and processes to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_cluster_gives_the_values_of_the_database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'feature_platform[ray]'")
    monkeypatch.setenv("RAY_ADDRESS", request.getfixturevalue("cluster").address)
    assert_same(events_of(2000, 2))
    killed = tmp_path / "killed"
    monkeypatch.setattr("feature_platform.lake.training.join", dies_once(killed))
    assert_same(events_of(2000, 2))
    assert killed.exists()


def dies_once(flag: Path) -> Callable[[TrainingTask], Joined]:
    """Return a `join` that kills the first worker process that has symbol B."""

    def join_or_die(task: TrainingTask) -> Joined:
        found = join(task)
        if "B" in task.symbols and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return join_or_die
