"""Guards against served rows that what was known does not explain.

FEATURE_PLATFORM_TEST_SERVES: the rows to log, 6,000 by default; from a million on, a whole day.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from feature_platform import schema
from feature_platform.embedded.server import EmbeddedServer, bin_dir
from feature_platform.skew import skew
from feature_platform.verify import verify
from feature_platform.views import catalog
from feature_platform.views.verify import served_views
from feature_platform_tests.fix_environment import passable_directory
from feature_platform_tests.fix_old_versions import load_dump
from feature_platform_tests.fix_processes import value
from feature_platform_tests.fix_skew import FEATURES
from feature_platform_tests.fix_views import check_views, refresh_all
from feature_platform_tests.served_day import DAY_VIEWS, Day

Conn = psycopg.Connection[Any]
SERVES = int(os.environ.get("FEATURE_PLATFORM_TEST_SERVES", "6000"))
MINUTES = 1440 if SERVES >= 1_000_000 else 150
ALL_TIME = datetime(2000, 1, 1, tzinfo=UTC)

# The version of a served row as of the number of its symbol, from the rows and their history.
_STORED = """
    SELECT count(*), count(*) FILTER (
               WHERE array_send(ARRAY[{columns}]::double precision[]) = array_send(s.values)
                 AND v.since = s.refresh_no)
    FROM (SELECT DISTINCT symbol, bucket, symbol_no, refresh_no, values
          FROM feature_platform.served WHERE view = {view}) AS s
    LEFT JOIN {versions} v ON v.symbol = s.symbol AND v.bucket = s.bucket
         AND v.since <= s.symbol_no AND (v.until IS NULL OR v.until > s.symbol_no)
"""


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """Yield a server with prepared transactions."""
    conf = {"fsync": "off", "full_page_writes": "off", "max_prepared_transactions": "10"}
    with passable_directory() as home, EmbeddedServer(home, conf=conf) as server:
        yield server


def check_versions(conn: Conn) -> None:
    """Fail unless each served row equals its stored version as of its symbol's number."""
    relations = [("features_1m", "feature_platform", "features_1m_versions", FEATURES.split(", "))]
    for view in served_views(conn):
        relations.append((view.name, "feature_views", f"v{view.id}_versions", list(view.columns)))
    assert len(relations) == 1 + len(DAY_VIEWS)
    for name, schema_name, versions, columns in relations:
        statement = SQL(_STORED).format(
            view=name,
            versions=Identifier(schema_name, versions),
            columns=SQL(", ").join(Identifier("v", column) for column in columns),
        )
        row = conn.execute(statement).fetchone()
        assert row is not None
        assert row[0] == row[1] > 0, (name, row)


def check_served(conn: Conn, rows: int) -> None:
    report = skew(conn, since=ALL_TIME)
    assert (report.rows, report.not_kept) == (rows, 0), report
    assert report.is_right, report
    check_versions(conn)


def upgrade(conn: Conn) -> None:
    """Upgrade the database of a session with the day's clock, and its views."""
    schema.apply(conn)
    catalog.apply(conn, DAY_VIEWS)
    while value(conn, "SELECT bool_or(state <> 'live') FROM feature_platform.feature_view"):
        refresh_all(conn)


@pytest.mark.parametrize("seed", [0])
def test_every_served_row_is_what_was_known(
    server: EmbeddedServer, seed: int, tmp_path: Path
) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
        conn.execute("CREATE DATABASE day")
    url = server.url("day")
    load_dump("served_day", url)
    day = Day(url, MINUTES, SERVES, seed, upgrade=upgrade)
    day.run()
    assert day.killed > 0
    assert day.crashed > 0
    assert day.logged >= SERVES
    with psycopg.connect(url, autocommit=True) as conn:
        # A crash may lose the last entries of the log, which do not wait for the disk.
        row = conn.execute("SELECT count(*) FROM feature_platform.served").fetchone()
        assert row is not None
        assert SERVES / 2 < row[0] <= day.logged
        check_served(conn, row[0])
        refresh_all(conn)
        assert verify(conn).mismatches == 0
        check_views(conn)
        check_served(conn, row[0])
    file = tmp_path / "day.dump"
    dump = ["--format=custom", f"--file={file}", f"--dbname={url}"]
    subprocess.run([bin_dir() / "pg_dump", *dump], check=True)
    with passable_directory() as home, EmbeddedServer(home, conf={"fsync": "off"}) as other:
        with psycopg.connect(other.url("postgres"), autocommit=True) as conn:
            conn.execute("CREATE DATABASE day")
        restore = ["--no-owner", "--no-privileges", f"--dbname={other.url('day')}"]
        subprocess.run([bin_dir() / "pg_restore", "--exit-on-error", *restore, file], check=True)
        with psycopg.connect(other.url("day"), autocommit=True) as conn:
            check_served(conn, row[0])
