"""The purge of what Dagster itself keeps for ever.

Dagster purges its ticks, as dagster.yaml says, and nothing else. At one event a minute and more
the rest would grow without bound, and the UI would slow down with it. What is kept is what the
UI needs to show a state: the newest event of each kind, asset and partition, the newest result
of each check, and everything of the last weeks.
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
    """Say how many rows were deleted, and how large the database was and is."""

    events: int
    check_executions: int
    runs: int
    bytes_before: int
    bytes_after: int


@contextmanager
def connect_storage(instance: dg.DagsterInstance) -> Iterator[psycopg.Connection[Any] | None]:
    """Connect to the database that an instance keeps its events in; None if not PostgreSQL."""
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
    """Delete what is older than `keep` and not the newest of its kind.

    storage: in autocommit mode. Rows go in slices of a few thousand, each a transaction, so
        that nobody waits for it; the space is used again by what comes.
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
    """Delete old events, walking over those that stay."""
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
