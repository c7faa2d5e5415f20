"""Databases with short and long histories, and the cost of a statement on them.

The cost is read from EXPLAIN: the rows of the nodes that scan a table, and the pages, which include
those of functions, triggers, indexes and planning.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from feature_platform_tests.fix_database import Databases

SYMBOLS = 20
HISTORY = 3  # days; bars are ten minutes apart, so that a day has 144

BARS = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT 'S' || s, current_setting('tests.newest')::timestamptz - m * interval '1 minute',
           10, 12, 9, 10 + m %% 3, 1 + (m + s) %% 7
    FROM generate_series(1, %s) AS s, generate_series(0, %s * 1440 - 1, 10) AS m
"""


@pytest.fixture(scope="module")
def histories(databases: Databases) -> Iterator[tuple[psycopg.Connection, psycopg.Connection]]:
    """Yield two databases of many symbols, the second with ten times as many days of bars."""
    with ExitStack() as stack:
        conns = []
        for days in (HISTORY, 10 * HISTORY):
            url = stack.enter_context(databases.fresh())
            conn = stack.enter_context(psycopg.connect(url, autocommit=True))
            conn.execute(
                "SELECT set_config('tests.newest', date_trunc('minute', now() - %s)::text, false)",
                [timedelta(minutes=20)],
            )
            conn.execute(BARS, (SYMBOLS, days))
            conn.execute("CALL refresh_features_1m(NULL, NULL)")
            conn.execute("VACUUM (ANALYZE)")
            conns.append(conn)
        yield conns[0], conns[1]


def explain(
    conn: psycopg.Connection, statement: LiteralString, *parameters: object
) -> dict[str, Any]:
    """Run a statement, whose parameters are $1, $2, …, and return its plan."""
    cursor = psycopg.RawCursor(conn)
    row = cursor.execute(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement, parameters or None
    ).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def pages_of(plan: dict[str, Any]) -> int:
    return sum(
        part.get("Shared Hit Blocks", 0) + part.get("Shared Read Blocks", 0)
        for part in (plan["Plan"], plan.get("Planning", {}))
    )


def processor_seconds(conn: psycopg.Connection, statement: LiteralString) -> float:
    """Run a statement; return the processor seconds that the server's process used for it.

    Other work on the machine does not count. For a server elsewhere, return the elapsed time.
    """
    process = Path(f"/proc/{conn.info.backend_pid}/stat")
    own = process.exists() and "postgres" in process.read_text()

    def used() -> float:
        if not own:
            return time.monotonic()
        user, system = process.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    before = used()
    conn.execute(statement)
    return used() - before


def about_as_many(pages: list[int]) -> bool:
    """Return whether a longer history costs at most another index level, or further chunks."""
    short, long = pages
    return long <= short * 1.5 + 100
