"""Guards against a poll of users' validation queries that misses wrong rows."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from benchmarks.validation_poll import poll
from feature_platform_tests.fix_processes import insert_recent

Conn = psycopg.Connection[Any]

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


def prepared(conn: Conn) -> None:
    for symbol in "AB":
        insert_recent(conn, symbol, 1500)
    conn.execute("CALL refresh_features_1m(NULL, NULL)")


def test_live_rows_without_nulls_pass(conn: Conn) -> None:
    prepared(conn)
    found = poll(conn, 0.2, every=0.1)
    assert (found.polls, found.findings) == (2, [])
    assert found.fewest_rows in (None, 9, 10)  # none in a minute's first seconds


def test_missing_rows_and_nulls_are_named(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.validation_poll.LATE_IN_MINUTE", -1)
    prepared(conn)
    conn.execute(
        "DELETE FROM features_1m WHERE symbol = 'A' AND bucket > now() - interval '4 minutes'"
    )
    conn.execute(
        "UPDATE features_1m SET volume_z = NULL WHERE symbol = 'B'"
        " AND bucket = (SELECT max(bucket) FROM features_1m)"
    )
    found = poll(conn, 0)
    assert found.polls == 1
    (rows, null) = found.findings
    assert "A has " in rows
    assert "has a NULL" in null


def test_a_poll_without_data_fails(conn: Conn) -> None:
    assert poll(conn, 0).findings == ["there are no features of the last hour"]
