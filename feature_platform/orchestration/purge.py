"""The purge of Dagster's own database.

Dagster deletes old ticks (`retention` in dagster.yaml), but no events, runs or results of checks.
With an event or more each minute they would grow without bound and slow the UI down. The purge
keeps the rows that the UI needs to show a state: the newest event of each kind, asset and
partition, the newest result of each check, and everything of the last two weeks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
from dagster_postgres import PostgresEventLogStorage
from psycopg import sql
from sqlalchemy import make_url

from feature_platform.queries import queries

KEEP = timedelta(days=14)
_SLICE = 5000


@dataclass(frozen=True)
class PurgeReport:
    """The numbers of deleted rows, and the database's size before and after."""

    events: int
    check_executions: int
    runs: int
    bytes_before: int
    bytes_after: int


@contextmanager
def connect_storage(instance: dg.DagsterInstance) -> Iterator[psycopg.Connection[Any] | None]:
    """Connect to the database of an instance's events; None if it is not PostgreSQL."""
    storage = instance.event_log_storage
    storage = getattr(storage, "event_log_storage", storage)
    if not isinstance(storage, PostgresEventLogStorage):
        yield None
        return
    url = make_url(storage.postgres_url).set(drivername="postgresql")
    with psycopg.connect(
        url.render_as_string(hide_password=False), autocommit=True, connect_timeout=10
    ) as connection:
        yield connection


def purge(storage: psycopg.Connection[Any], keep: timedelta = KEEP) -> PurgeReport:
    """Delete rows that are older than `keep` and not the newest of their kind.

    storage: in autocommit mode. Each slice of a few thousand rows is a transaction of its own, so
        that other sessions do not wait long; new rows use the freed space again.
    """
    before = datetime.now(UTC) - keep
    size = _number(storage, "purge_size")
    storage.execute(queries["purge_index"])
    checks = _delete(storage, "purge_check_executions", before)
    events = _purge_events(storage, before)
    runs = _delete(storage, "purge_runs", before)
    for name in ("event_logs", "asset_check_executions", "runs"):
        storage.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(name)))
    return PurgeReport(events, checks, runs, size, _number(storage, "purge_size"))


def _purge_events(storage: psycopg.Connection[Any], before: datetime) -> int:
    """Delete old events in slices, by id."""
    deleted = 0
    after: int | None = -1
    while after is not None:
        parameters = {"before": before, "after": after, "limit": _SLICE}
        row = storage.execute(queries["purge_events"], parameters).fetchone()
        assert row is not None, "the statement always gives one row"
        after, gone = row
        deleted += gone
    return deleted


def _delete(storage: psycopg.Connection[Any], query: str, before: datetime) -> int:
    deleted = 0
    while True:
        gone = storage.execute(queries[query], {"before": before, "limit": _SLICE}).rowcount
        deleted += gone
        if gone < _SLICE:
            return deleted


def _number(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(queries[query]).fetchone()
    assert row is not None, "the statement always gives one row"
    return int(row[0])
