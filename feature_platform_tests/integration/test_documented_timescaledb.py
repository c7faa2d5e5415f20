"""Guards against examples of docs/timescaledb.md whose results differ from the page."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from feature_platform.refresh import refresh
from feature_platform.verify import verify
from feature_platform_tests.fix_database import Engine
from feature_platform_tests.fix_embedded import CHECKOUT
from feature_platform_tests.fix_processes import run_on, value

Conn = psycopg.Connection[Any]

PAGE = (CHECKOUT / "docs" / "timescaledb.md").read_text(encoding="utf-8")
INSERT = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT %s, ts, 100, 101, 99, 100 + sin(extract(minute FROM ts)) / 2, 5 + extract(minute FROM ts)
    FROM generate_series(date_bin('1 hour', now() - interval '3 days', 'epoch'),
                         feature_platform.due_until() - interval '1 minute', '1 minute') AS ts
"""
OLD_TABLE = """
    CREATE TABLE ohlcv_1m (
        ts timestamptz CONSTRAINT ohlcv_1m_pkey PRIMARY KEY,
        open float8, high float8, low float8, close float8, vol float8);
    CREATE INDEX features_1m_bucket_idx ON ohlcv_1m (ts DESC);
"""
OLD_BARS = """
    INSERT INTO ohlcv_1m
    SELECT ts, 100, 101, 99, 100.5, 5 + extract(minute FROM ts)
    FROM generate_series(now() - interval '3 days', now() - interval '2 minutes', '1 minute') AS ts
"""
OLD_VIEW = """
    CREATE MATERIALIZED VIEW features_1m WITH (timescaledb.continuous) AS
    SELECT time_bucket('1 minute', ts) AS bucket, sum(vol) AS vol FROM ohlcv_1m GROUP BY 1
"""


@dataclass
class Block:
    """A fenced block of the page. words: those after its opening fence."""

    words: list[str]
    text: str


@dataclass
class Statement:
    """A statement of a block, with its documented result or error, if any."""

    sql: str
    gives: str | None = None
    error: str | None = None


BLOCKS = [
    Block(match[1].split(), match[2])
    for match in re.finditer(r"^```(\S[^\n]*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]
EXAMPLES = [block for block in BLOCKS if block.words == ["sql"]]
RECIPE = [block for block in BLOCKS if "recipe" in block.words]


def statements(text: str) -> list[Statement]:
    found: list[Statement] = []
    pending: list[str] = []
    for line in text.splitlines():
        if line.startswith("-- gives: "):
            found[-1].gives = line.removeprefix("-- gives: ")
        elif line.startswith("-- ERROR: "):
            found[-1].error = line.removeprefix("-- ERROR: ")
        else:
            pending.append(line)
            if line.endswith(";"):
                found.append(Statement("\n".join(pending)))
                pending = []
    assert not pending
    return found


def run_statement(conn: Conn, statement: Statement) -> None:
    query = statement.sql.encode()
    if statement.error is not None:
        with pytest.raises(psycopg.Error, match=re.escape(statement.error)):
            conn.execute(query)
        return
    cursor = conn.execute(query)
    if statement.gives is not None:
        row = cursor.fetchone()
        assert row is not None
        assert ", ".join(map(str, row)) == statement.gives, statement.sql


def test_the_page_has_examples_of_results_and_errors() -> None:
    assert len(EXAMPLES) > 10
    assert {"gives", "error"} <= {
        name
        for block in EXAMPLES
        for statement in statements(block.text)
        for name in ("gives", "error")
        if getattr(statement, name) is not None
    }
    assert len(EXAMPLES) + len(RECIPE) == len(BLOCKS)


@pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)
def test_every_example_has_its_documented_result(database: str, conn: Conn) -> None:
    for symbol in ("BTC/USDT", "ETH/USDT"):
        conn.execute(INSERT, [symbol])
    refresh(conn)
    for block in EXAMPLES:
        for statement in statements(block.text):
            run_statement(conn, statement)
    report = verify(conn)
    assert (report.mismatches, report.pending) == (0, 0)
    done = run_on(database, "db", "apply")  # beside continuous aggregates
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("bad_rows", [0, 2])
def test_the_recipe_migrates_bars_without_a_symbol(
    empty_database: str, engine: Engine, bad_rows: int
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(OLD_TABLE)
        if engine == "timescaledb":
            conn.execute("SELECT create_hypertable('ohlcv_1m', by_range('ts'))")
            conn.execute(OLD_VIEW)
        conn.execute(OLD_BARS)
        bars = value(conn, "SELECT count(*) FROM ohlcv_1m")
        if bad_rows:
            conn.execute("UPDATE ohlcv_1m SET vol = -1 WHERE ts = (SELECT min(ts) FROM ohlcv_1m)")
            conn.execute("UPDATE ohlcv_1m SET vol = NULL WHERE ts = (SELECT max(ts) FROM ohlcv_1m)")
        for block in RECIPE:
            if "timescaledb" in block.words and engine != "timescaledb":
                continue
            if block.words[0] == "sh":
                program, *arguments = shlex.split(block.text)
                assert program == "feature-platform"
                done = run_on(empty_database, *arguments)
                assert (done.returncode, done.stderr) == (0, "")
                continue
            for statement in statements(block.text):
                cursor = conn.execute(statement.sql.encode())
                if statement.sql.startswith("SELECT * FROM before"):
                    assert len(cursor.fetchall()) == bad_rows
                    conn.execute("DELETE FROM before.ohlcv_1m WHERE vol < 0 OR vol IS NULL")
        report = verify(conn)
        assert (report.rows, report.mismatches, report.pending) == (bars - bad_rows, 0, 0)
        assert value(conn, "SELECT DISTINCT symbol FROM features_1m") == "BTC/USDT"
        conn.execute("DROP SCHEMA before CASCADE")
        assert verify(conn).rows == bars - bad_rows
