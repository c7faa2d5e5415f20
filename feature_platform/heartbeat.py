"""Heartbeats: what the recorder hears of each market, for others to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import psycopg
from psycopg.rows import class_row

from feature_platform.queries import queries

# Heartbeats come every ten seconds; two of them are late.
SILENT_SECONDS = 25.0

FeedState = Literal["live", "catching_up", "down", "stopped", "not_recorded"]


@dataclass
class Heartbeat:
    """Say what is heard of one market.

    state: `live`: heard, and nothing is missing; `catching_up`: heard, and the exchange is being
        asked for what was missed; `down`: not heard; `stopped`: the recorder ended in order;
        `not_recorded`: the symbol was taken out of the settings.
    state_at: since when.
    connected_at: since when the present connection is up; None where there is none.
    heard_at: when something was last heard of the market.
    bar_at: the newest minute that came by the stream.
    refused: how many rows of the stream were no bars, since the recorder started.
    """

    symbol: str
    state: FeedState
    state_at: datetime
    connected_at: datetime | None = None
    heard_at: datetime | None = None
    bar_at: datetime | None = None
    refused: int = 0
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
class Feed:
    """One row of `feature_platform.heartbeat`, and how old it is in seconds."""

    symbol: str
    state: FeedState
    state_at: datetime
    connected_at: datetime | None
    heard_at: datetime | None
    bar_at: datetime | None
    beat_at: datetime
    refused: int
    last_error: str | None
    age: float

    @property
    def shown_state(self) -> str:
        """The state in words: `silent` where heartbeats stopped without a word, as of a kill."""
        silent = self.age > SILENT_SECONDS and self.state not in ("stopped", "not_recorded")
        return "silent" if silent else self.state.replace("_", " ")


def begin_heartbeats(connection: psycopg.Connection[Any], symbols: Mapping[str, str]) -> None:
    """Note that a recorder begins with these symbols, and when the last one ended.

    The others that were recorded are `not_recorded` from now on.
    symbols: the exchange of each.
    """
    parameters = {"symbols": list(symbols), "exchanges": list(symbols.values())}
    connection.execute(queries["heartbeat_begin"], parameters)


def write_heartbeats(
    connection: psycopg.Connection[Any], beats: Sequence[Heartbeat], outages: Sequence[Outage]
) -> None:
    """Write what is heard now of each market, and the outages since the last call."""
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
        "heard_at",
        "bar_at",
        "refused",
        "last_error",
        "last_error_at",
    )
    connection.execute(
        queries["heartbeat_write"],
        {name: [getattr(beat, name) for beat in beats] for name in columns},
    )


def list_feeds(connection: psycopg.Connection[Any]) -> list[Feed]:
    """Return the heartbeats by symbol; none where no recorder was ever at work."""
    with connection.cursor(row_factory=class_row(Feed)) as cursor:
        return cursor.execute(queries["heartbeat_list"]).fetchall()
