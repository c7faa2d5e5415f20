"""Guards against features that are right only for generated bars, by real months."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from feature_platform.importer import import_bars
from feature_platform.refresh import refresh
from feature_platform.verify import verify
from feature_platform_tests.fix_engine import check

DATA = Path(__file__).parents[3] / "shared" / "data"

needs_files = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data does not exist")


@needs_files
@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("ALGOUSDT-1m-2026-02.csv.gz", 40_320),
        ("LINKUSDT-1m-2026-02.csv.gz", 40_320),
        ("LTCUSDT-1m-2026-02.csv.gz", 40_320),
        ("XRPETH-1m-2019-10-11.csv.gz", 2_469),
    ],
)
def test_real_bars_have_the_features_of_the_oracle(
    conn: psycopg.Connection, file: str, rows: int
) -> None:
    assert import_bars(conn, [DATA / file], symbol="REAL").total.inserted == rows
    assert refresh(conn).rows_written == rows
    check(conn)
    report = verify(conn)
    assert (report.rows, report.mismatches, report.pending) == (rows, 0, 0)


@needs_files
def test_all_gaps_of_a_rarely_traded_symbol_are_found(conn: psycopg.Connection) -> None:
    """Of the 3,560 minutes between the file's first and last bar, 1,091 are missing."""
    import_bars(conn, [DATA / "XRPETH-1m-2019-10-11.csv.gz"], symbol="XRP/ETH")
    conn.execute("SELECT feature_platform.find_gaps(budget => 10000000)")
    row = conn.execute(
        "SELECT count(*), sum(extract(epoch FROM end_ts - start_ts) / 60)::int FROM ohlcv_1m_gaps"
        " WHERE end_ts <= (SELECT max(ts) FROM ohlcv_1m)"
    ).fetchone()
    assert row == (676, 1_091)
