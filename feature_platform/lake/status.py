"""The state of the lake's tables."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from feature_platform.lake import delta
from feature_platform.queries import queries


@dataclass(frozen=True)
class LakeStatus:
    """The state of one table of the lake.

    mirrored_until: the lake has all rows before it, but for those that wait.
    waiting: symbols with days that wait for a sync.
    size: in bytes.
    """

    name: str
    mirrored_until: datetime | None
    synced_at: datetime | None
    waiting: int
    rows: int
    files: int
    size: int


def lake_status(connection: psycopg.Connection[Any]) -> list[LakeStatus]:
    """Return the state of each table that has been synced; raises UserError as for a reader."""
    delta.location()
    found = []
    for name, until, synced_at, waiting in connection.execute(queries["lake_states"]):
        table = delta.open_table(name)
        files = [] if table is None else delta.files(table, delta.uri_of(name))
        rows, size = sum(file.rows for file in files), sum(file.size for file in files)
        found.append(LakeStatus(name, until, synced_at, waiting, rows, len(files), size))
    return found
