"""A database with four days of bars, features and a view, and a lake beside it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from psycopg.sql import SQL, Identifier

from feature_platform.lake.sync import Synced, sync
from feature_platform.refresh import refresh
from feature_platform.settings import get_settings
from feature_platform.views import catalog
from feature_platform.views.expressions import bar, mean
from feature_platform.views.view import FeatureView

FIRST = datetime(2026, 1, 30, tzinfo=UTC)
DAY = timedelta(days=1)
MEAN = FeatureView("mean_1m", "1 minute", {"mean_1h": mean(bar.close, "1 hour")})
TIMES = {"ohlcv_1m": "ts", "features_1m": "bucket", "mean_1m": "bucket"}
SYMBOLS = ("A", "B", "it's")


class Lake:
    """A lake of a database.

    path: its directory.
    conn: an autocommit connection to the database.
    """

    def __init__(self, path: Path, conn: psycopg.Connection[Any]) -> None:
        self.path = path
        self.conn = conn

    def sync(self, **options: Any) -> dict[str, Synced]:
        return {done.name: done for done in sync(self.conn, **options)}

    def delta(self, name: str) -> DeltaTable:
        return DeltaTable(str(self.path / name))

    def rows(self, name: str) -> pa.Table:
        """Return the rows of a table of the lake, sorted, without the partitions' columns."""
        table = self.delta(name).to_pyarrow_table().drop_columns(["lake_month", "lake_part"])
        return table.sort_by([("symbol", "ascending"), (TIMES[name], "ascending")])

    def assert_equal(self, until: datetime | None = None) -> None:
        """Assert that the rows of each table equal those of the database before a time."""
        for name, time in TIMES.items():
            lake = self.rows(name)
            columns = SQL(", ").join(map(Identifier, lake.column_names))
            stored = self.conn.execute(
                SQL("SELECT {} FROM {} WHERE {} < %s ORDER BY symbol, 2").format(
                    columns, Identifier(name), Identifier(time)
                ),
                [until or FIRST + 10 * DAY],
            ).fetchall()
            assert list(zip(*lake.to_pydict().values(), strict=True)) == stored, name

    def correct(self, symbol: str, moment: datetime, close: float = 9.5) -> None:
        """Change one bar, and process the change."""
        self.conn.execute(
            "UPDATE ohlcv_1m SET close = %s WHERE symbol = %s AND ts = %s", [close, symbol, moment]
        )
        self.refresh()

    def refresh(self) -> None:
        refresh(self.conn)
        catalog.refresh_views(self.conn)


@pytest.fixture
def lake(
    conn: psycopg.Connection[Any],
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Lake]:
    """Give a lake without tables, and a database of four days over the end of a month."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    monkeypatch.setenv("FEATURE_PLATFORM_LAKE", str(tmp_path / "lake"))
    get_settings.cache_clear()
    conn.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT symbol, %s + minute * interval '1 minute', 10, 12, 8, 9 + sin(minute), minute %% 7
             FROM unnest(%s::text[]) AS symbol
            CROSS JOIN generate_series(0, 4 * 1440 - 1) AS minute""",
        [FIRST, list(SYMBOLS)],
    )
    refresh(conn)
    catalog.apply(conn, [MEAN])
    catalog.refresh_views(conn)
    yield Lake(tmp_path / "lake", conn)
    get_settings.cache_clear()
