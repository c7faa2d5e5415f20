"""Guards against symbols that the database and Python do not both accept or reject."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_platform.symbols import fault_of
from feature_platform_tests.fix_processes import COMMAND, run_on, value

Conn = psycopg.Connection[Any]

INSERT = (
    "INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol) VALUES (%s, %s, 1, 1, 1, 1, 1)"
)
TS = "2026-03-01T00:00Z"
BAD = {
    "empty": "",
    "long": "A" * 201,
    "leading space": " BTC/USDT",
    "trailing space": "BTC/USDT ",
    "no-break space": "BTC/USDT\u00a0",
    "ideographic space": "\u3000BTC",
    "newline": "BTC\nUSDT",
    "escape": "\x1b[31mBTC",
    "C1": "BTC\x85USDT",
}
GOOD = (
    "A",
    "BTC/USDT:USDT-261225",
    "kraken:BTC/USD",
    "A" * 200,
    "ЁЖ/₿",
    "日経平均",
    "a b",
    "'; --",
)


@pytest.mark.parametrize("name", BAD)
def test_the_database_rejects_a_symbol_out_of_limits(conn: Conn, name: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(INSERT, (BAD[name], TS))
    assert value(conn, "SELECT count(*) FROM ohlcv_1m") == 0


@pytest.mark.parametrize("symbol", GOOD)
def test_the_database_accepts_every_other_symbol(conn: Conn, symbol: str) -> None:
    conn.execute(INSERT, (symbol, TS))
    assert fault_of(symbol) is None


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_python_and_the_database_accept_the_same_symbols(conn: Conn) -> None:
    edges = st.sampled_from(
        " \t\x1c\x7f\x85\xa0\u1680\u180e\u2007\u200b\u2028\u202f\u205f\u3000\ufeff"
    )
    texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0") | edges)

    @given(texts | st.builds("{}{}{}".format, edges, texts, edges) | st.text("A", min_size=198))
    def agree(symbol: str) -> None:
        found = value(conn, "SELECT feature_platform.is_symbol(%s::text)", symbol)
        assert found == (fault_of(symbol) is None), ascii(symbol)

    agree()


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_an_upgrade_names_symbols_out_of_limits(database: str, conn: Conn) -> None:
    """A database from before the limits is not changed until its owner renames the symbols."""
    conn.execute("ALTER TABLE feature_platform.known_symbol DROP CONSTRAINT known_symbol_check")
    conn.execute(INSERT, (" BTC ", TS))
    done = run_on(database, "db", "apply")
    assert done.returncode == 2, done.stderr
    assert "no longer accepted: ' BTC '" in done.stderr
    assert "Traceback" not in done.stderr
    conn.execute("UPDATE ohlcv_1m SET symbol = 'BTC'")
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    assert run_on(database, "db", "apply").returncode == 0
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(INSERT, (" BTC ", TS))


ODD_BYTES = b"BTC\xff/USDT"
COMMANDS = (
    ("verify", "--symbol"),
    ("gaps", "--symbol"),
    ("backfill", "--start", "2026-03-01", "--symbol"),
    ("simulate", "--port", "0", "--symbols"),
    ("forget", "--yes"),
)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("symbol", [ODD_BYTES, b" BTC", b"A" * 201, b"A\nB", b""], ids=ascii)
def test_a_bad_symbol_gets_one_line(
    database: str, arguments: tuple[str, ...], symbol: bytes
) -> None:
    if arguments[0] == "simulate" and symbol in (b" BTC", b""):
        return  # a list is trimmed, and an empty list stands for the settings
    done = run_raw(database, [*(one.encode() for one in arguments), symbol])
    assert_one_line(done)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    "variable", ["FEATURE_PLATFORM_SYMBOLS", "FEATURE_PLATFORM_EXCHANGE", "FEATURE_PLATFORM_HOME"]
)
def test_odd_bytes_in_the_environment_get_one_line(database: str, variable: str) -> None:
    done = run_raw(database, [b"gaps"], {variable.encode(): ODD_BYTES})
    assert_one_line(done)
    assert variable.encode() in done.stderr


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_an_odd_file_name_gets_one_line(database: str) -> None:
    assert_one_line(run_raw(database, [b"import", b"--symbol", b"A", b"\xff.csv"]))


def assert_one_line(done: subprocess.CompletedProcess[bytes]) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(b"\n") == 1, done.stderr
    assert done.stderr.startswith(b"feature-platform: "), done.stderr


def run_raw(
    database: str, arguments: list[bytes], extra: dict[bytes, bytes] | None = None
) -> subprocess.CompletedProcess[bytes]:
    environment = {
        **os.environb,
        b"FEATURE_PLATFORM_DATABASE_URL": database.encode(),
        **(extra or {}),
    }
    command = [one.encode() for one in COMMAND]
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, timeout=60, check=False
    )
