"""Guards against input that the database runs as SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from feature_platform.errors import UserError
from feature_platform.importer import import_bars
from feature_platform.verify import verify
from feature_platform_tests.fix_engine import refresh
from feature_platform_tests.fix_processes import insert_recent, only_line, run_on, value

Conn = psycopg.Connection[Any]

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)

HOSTILE = (
    "'; DROP TABLE ohlcv_1m; --",
    '"; DROP TABLE ohlcv_1m; --',
    "x' OR '1'='1",
    "$$; DELETE FROM ohlcv_1m; $$",
    "\\'; TRUNCATE ohlcv_1m; --",
    "%(symbol)s %s {} {0}",
    "A\n\\! touch pwned",
    "'||pg_sleep(10)||'",
    "Ω'; SELECT 1; --",
)


@pytest.fixture
def intact(conn: Conn) -> Any:
    """Yield a filled database, and fail unless its rows are unchanged after the test."""
    insert_recent(conn, "A", 20)
    refresh(conn)
    yield conn
    assert value(conn, "SELECT count(*) FROM ohlcv_1m WHERE symbol = 'A'") == 20
    report = verify(conn, symbol="A")
    assert (report.rows, report.mismatches, report.pending) == (20, 0, 0)


def test_a_hostile_symbol_option_is_stored_as_a_symbol_or_rejected(
    intact: Conn, tmp_path: Path
) -> None:
    file = tmp_path / "bars.csv"
    for symbol in HOSTILE:
        file.write_text("ts,open,high,low,close,vol\n2026-02-01T00:00Z,10,12,9,11,5\n")
        try:
            import_bars(intact, [file], symbol=symbol)
        except UserError:
            continue  # rejected as a symbol: no bar is stored
        assert value(intact, "SELECT count(*) FROM ohlcv_1m WHERE symbol = %s", symbol) == 1
        refresh(intact)
        assert verify(intact, symbol=symbol).rows == 1
    assert value(intact, "SELECT count(DISTINCT symbol) FROM ohlcv_1m") > 3


def test_a_hostile_symbol_in_a_file_is_stored_as_a_symbol_or_rejected(
    intact: Conn, tmp_path: Path
) -> None:
    file = tmp_path / "bars.csv"
    for symbol in HOSTILE:
        quoted = '"' + symbol.replace('"', '""') + '"'
        file.write_text(
            f"symbol,ts,open,high,low,close,vol\n{quoted},2026-02-01T00:00Z,10,12,9,11,5\n"
        )
        try:
            import_bars(intact, [file])
        except UserError:
            continue
        assert value(intact, "SELECT count(*) FROM ohlcv_1m WHERE symbol = %s", symbol) == 1


@pytest.mark.parametrize(
    "command",
    [
        ("verify", "--symbol", HOSTILE[0]),
        ("verify", "--start", HOSTILE[0]),
        ("refresh", "--end", HOSTILE[2]),
        ("refresh", "--start", "2026-01-01'::timestamptz; DROP TABLE features_1m; --"),
        ("gaps", "--state", HOSTILE[0]),
        ("import", "bars.csv", "--symbol", "B", "--column-close", HOSTILE[1]),
        ("import", "bars.csv", "--symbol", "B", "--column-ts", HOSTILE[0]),
    ],
)
def test_hostile_options_get_one_line(
    intact: Conn, database: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "bars.csv"
    file.write_text("ts,open,high,low,close,vol\n2026-02-01T00:00Z,10,12,9,11,5\n")
    arguments = [str(file) if one == "bars.csv" else one for one in command]
    done = run_on(database, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert only_line(done.stderr).startswith("feature-platform: ")
    assert value(intact, "SELECT count(*) FROM ohlcv_1m") == 20


def test_the_gaps_command_rejects_a_hostile_symbol(intact: Conn, database: str) -> None:
    done = run_on(database, "gaps", "--symbol", HOSTILE[2])
    assert (done.returncode, done.stdout) == (2, "")
    assert "there are no bars of" in only_line(done.stderr)
    assert value(intact, "SELECT count(*) FROM ohlcv_1m") == 20
