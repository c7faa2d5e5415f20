"""What sensors remember from tick to tick: what they have reported last."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Self

# Of the wall clock, by which Dagster ticks, whatever the platform's own tells.
HEARTBEAT = timedelta(minutes=5)


@dataclass
class Cursor:
    """Remember when everything was reported last.

    heartbeat: in seconds since 1970.
    """

    heartbeat: float = 0.0

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read a cursor; what cannot be read counts as nothing reported."""
        try:
            return cls(**json.loads(text or "{}"))
        except (TypeError, ValueError):
            return cls()

    def dump(self) -> str:
        """Return the cursor as Dagster keeps it."""
        return json.dumps(asdict(self))

    @property
    def beats(self) -> bool:
        """Whether it is time to report everything, changed or not."""
        return time.time() - self.heartbeat >= HEARTBEAT.total_seconds()


@dataclass
class ReportedState(Cursor):
    """Remember what the validation sensor has reported.

    passed: by the name of the check.
    newest: the newest bar or row, in ISO-8601, by the name of the table.
    suspects: symbol and minute of rows that were not what the bars give.
    """

    passed: dict[str, bool] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)
    suspects: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class ReportedPolicy(Cursor):
    """Remember what the policy's sensor has reported.

    policy: the policy itself, in PostgreSQL's words for intervals.
    last: the newest run; rows and slices: what it had done by then, as wakes may add to it.
    """

    policy: dict[str, str] = field(default_factory=dict)
    last: int = 0
    rows: int = 0
    slices: int = 0
