"""A generated live past with late corrections, for the notebook about training without leakage."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg

from feature_platform import schema
from feature_platform.embedded.server import EmbeddedServer
from feature_platform.importer import import_bars
from feature_platform.queries import queries

SYMBOL = "DELTA/USDT"
START = datetime(2026, 3, 1, tzinfo=UTC)
DAY = 1440  # minutes
LIVE_DAYS = 2  # after one day of imported history
_LATE = 60  # minutes until a bar is corrected
_DRIFT = 0.0004  # a minute, after a busy one
_MINUTE = timedelta(minutes=1)


@contextmanager
def live_past() -> Iterator[str]:
    """Start a server in a temporary directory, and give the URL of its database.

    One day is imported. The next days come minute by minute, as from a stream that is often wrong
    about the volume; every hour, its bars are corrected. A refresh follows each minute, by a clock
    that the session sets. The server and its data are removed afterwards.
    """
    home = Path(tempfile.mkdtemp(prefix="fp-"))
    home.chmod(0o711)  # the system user of the server passes through
    try:
        with EmbeddedServer(home, conf={"fsync": "off"}) as server:
            url = server.url("postgres")
            with psycopg.connect(url, autocommit=True) as connection:
                schema.apply(connection, simulated=True)
                _live(connection, home)
            yield url
    finally:
        shutil.rmtree(home, ignore_errors=True)


def bars() -> tuple[pd.DataFrame, pd.Series[float]]:
    """Return the true bars by time, and the volumes that the stream gave at first.

    A busy minute is followed by a drift in its direction. The stream lost most messages of most
    busy minutes. It counted other messages twice, in minutes that nothing follows.
    """
    random = np.random.default_rng(8)
    count = (1 + LIVE_DAYS) * DAY
    step = random.normal(0, 0.0004, count)
    kind = random.choice(3, count, p=[0.95, 0.03, 0.02])
    busy, twice = kind == 1, kind == 2
    for minute in np.flatnonzero(busy):
        step[minute] = np.sign(step[minute]) * 0.0008
        step[minute + 1 : minute + 11] += np.sign(step[minute]) * _DRIFT
    close = 100 * np.exp(np.cumsum(step))
    volume = random.gamma(20, 1, count)
    volume[busy] *= 5
    streamed = volume.copy()
    lost = busy & (random.random(count) < 0.9)
    streamed[lost] /= 5
    streamed[twice] *= 5
    open_ = np.concatenate(([100.0], close[:-1]))
    frame = pd.DataFrame(
        {
            "open": open_,
            "high": np.maximum(open_, close),
            "low": np.minimum(open_, close),
            "close": close,
            "vol": volume,
        },
        index=pd.date_range(START, periods=count, freq="min", name="ts"),
    ).round(6)
    return frame, pd.Series(streamed.round(6), frame.index)


def _live(connection: psycopg.Connection[Any], directory: Path) -> None:
    true, streamed = bars()
    history = directory / "history.csv"
    true[:DAY].to_csv(history)
    _set_clock(connection, START + DAY * _MINUTE)
    import_bars(connection, [history], symbol=SYMBOL)
    connection.execute(queries["demo_refresh"])
    for minute in range(DAY, len(true)):
        stamp = true.index[minute]
        row = {"symbol": SYMBOL, "ts": stamp, **true.loc[stamp], "vol": streamed[stamp]}
        connection.execute(queries["demo_store"], row)
        _set_clock(connection, (stamp + _MINUTE + timedelta(seconds=1)).to_pydatetime())
        connection.execute(queries["demo_refresh"])
        if (minute + 1) % _LATE == 0:
            for late in true.index[minute + 1 - _LATE : minute + 1]:
                if streamed[late] != true["vol"][late]:
                    connection.execute(
                        queries["demo_store"], {"symbol": SYMBOL, "ts": late, **true.loc[late]}
                    )
            _set_clock(connection, (stamp + _MINUTE + timedelta(seconds=30)).to_pydatetime())
            connection.execute(queries["demo_refresh"])


def _set_clock(connection: psycopg.Connection[Any], moment: datetime) -> None:
    """Let the clock of the session show a time; it then hardly moves."""
    clock = f"{moment.isoformat()}@{datetime.now(UTC).isoformat()}x0.001"
    connection.execute(queries["demo_set_clock"], {"clock": clock})
