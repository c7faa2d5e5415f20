"""Heartbeats: the state of the recorder's stream by symbol, stored for other processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import psycopg
from psycopg.rows import class_row

from feature_platform.queries import queries

# A recorder writes heartbeats every ten seconds; after this time two of them are late, and `status`
# shows "silent". `health` waits a minute (health_recorder in sql/queries/status.sql), as do the
# causes of gaps (feed_in in sql/037_heartbeat.sql); the check waits BEAT_AGE in validation.py.
SILENT_SECONDS = 25.0

StreamState = Literal["live", "catching_up", "down", "stopped", "not_recorded"]


@dataclass
class Heartbeat:
    """The state of the stream of one symbol.

    state: `live`: updates arrive and no minute is missing; `catching_up`: updates arrive, and the
        recorder fetches minutes that it missed; `down`: no updates arrive; `stopped`: the recorder
        was stopped; `not_recorded`: the symbol is no longer in the settings.
    state_at: when this state began.
    connected_at: when the current connection began; None without one.
    update_at: when the last update of the symbol arrived.
    bar_at: the newest minute that arrived by the stream.
    rejected: the number of rows of the stream that were not valid bars, since the recorder started.
    """

    symbol: str
    state: StreamState
    state_at: datetime
    connected_at: datetime | None = None
    update_at: datetime | None = None
    bar_at: datetime | None = None
    rejected: int = 0
    last_error: str | None = None
    last_error_at: datetime | None = None


@dataclass(frozen=True)
class Outage:
    """A time without updates of an exchange, and the reason."""

    start: datetime
    end: datetime
    reason: str
    exchange: str


@dataclass(frozen=True)
class StoredHeartbeat:
    """One row of `feature_platform.heartbeat`, and its age in seconds."""

    symbol: str
    state: StreamState
    state_at: datetime
    connected_at: datetime | None
    update_at: datetime | None
    bar_at: datetime | None
    beat_at: datetime
    rejected: int
    last_error: str | None
    age: float

    @property
    def shown_state(self) -> str:
        """The state in words: `silent` if heartbeats stopped, as after a kill."""
        silent = self.age > SILENT_SECONDS and self.state not in ("stopped", "not_recorded")
        return "silent" if silent else self.state.replace("_", " ")


def begin_heartbeats(connection: psycopg.Connection[Any], symbols: Mapping[str, str]) -> None:
    """Store that a recorder starts with these symbols, and when the last one ended.

    Other symbols that were recorded before become `not_recorded`.
    symbols: the exchange of each symbol.
    """
    parameters = {"symbols": list(symbols), "exchanges": list(symbols.values())}
    connection.execute(queries["heartbeat_begin"], parameters)


def write_heartbeats(
    connection: psycopg.Connection[Any], beats: Sequence[Heartbeat], outages: Sequence[Outage]
) -> None:
    """Store the state of each symbol, and the outages since the last call."""
    if outages:
        connection.execute(
            queries["heartbeat_outages"],
            {
                "start": [one.start for one in outages],
                "end": [one.end for one in outages],
                "reason": [one.reason for one in outages],
                "exchange": [one.exchange for one in outages],
            },
        )
    columns = (
        "symbol",
        "state",
        "state_at",
        "connected_at",
        "update_at",
        "bar_at",
        "rejected",
        "last_error",
        "last_error_at",
    )
    connection.execute(
        queries["heartbeat_write"],
        {name: [getattr(beat, name) for beat in beats] for name in columns},
    )


def list_heartbeats(connection: psycopg.Connection[Any]) -> list[StoredHeartbeat]:
    """Return the heartbeats by symbol; an empty list if no recorder has ever run."""
    with connection.cursor(row_factory=class_row(StoredHeartbeat)) as cursor:
        return cursor.execute(queries["heartbeat_list"]).fetchall()
