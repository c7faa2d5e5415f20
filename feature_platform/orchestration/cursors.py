"""The cursors of sensors: the state that each last reported.

A cursor of another shape, such as that of an older version, is read as an empty one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Self

# Seconds of the wall clock: Dagster's ticks follow it, also beside a simulated clock.
REPORT_INTERVAL = timedelta(minutes=5)


@dataclass
class Cursor:
    """The base of all cursors, stored as JSON without spaces."""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Return the cursor of a text; an empty one where the text cannot be read."""
        try:
            return cls(**json.loads(text or "{}"))
        except (TypeError, ValueError):
            return cls()

    def dump(self) -> str:
        """Return the cursor as Dagster stores it."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))


@dataclass
class ReportedChecks(Cursor):
    """The state that `run_checks` reported. Its size depends on neither symbols nor history.

    reports: when each asset and its checks were last reported, in seconds since 1970.
    failing: the findings of each failing check, as `CheckResult.findings` gives them.
    newest: the newest closed minute of each table, in ISO-8601.
    suspects: symbol and minute of rows that differed from the bars; at most as many as a check
        shows.
    """

    reports: dict[str, float] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)
    suspects: list[tuple[str, str]] = field(default_factory=list)

    def due(self, assets: Sequence[str], outdated: Collection[str]) -> set[str]:
        """Return the assets to report now: the outdated ones, and one whose report is old.

        Only one, so that no tick writes the events of all assets. The first tick reports all.
        """
        if not self.reports:
            return set(assets)
        oldest = min(assets, key=lambda asset: self.reports.get(asset, 0))
        age = time.time() - self.reports.get(oldest, 0)
        return {*outdated, oldest} if age >= REPORT_INTERVAL.total_seconds() else set(outdated)

    def note_reports(self, assets: Collection[str]) -> None:
        """Store that assets were reported now."""
        now = round(time.time(), 3)
        self.reports |= dict.fromkeys(assets, now)


@dataclass
class ReportedViews(Cursor):
    """The state that `watch_views` reported, by view.

    reports: when each was last reported, in seconds since 1970.
    newest: its newest bucket, in ISO-8601.
    states: its state.
    """

    reports: dict[str, float] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)

    def due(self, states: Mapping[str, str], outdated: Collection[str]) -> list[str]:
        """Return the views to report now: those outdated or in another state, and some old ones.

        states: of all views. Of those whose report is old, each tick of a minute gets its share.
        """
        before = time.time() - REPORT_INTERVAL.total_seconds()
        old = sorted(
            (name for name in states if self.reports.get(name, 0) <= before),
            key=lambda name: self.reports.get(name, 0),
        )
        share = math.ceil(len(states) * timedelta(minutes=1) / REPORT_INTERVAL)
        changed = (name for name in states if self.states.get(name, states[name]) != states[name])
        return list(dict.fromkeys([*changed, *outdated, *old[:share]]))

    def note_reports(self, due: Collection[str], states: Mapping[str, str]) -> None:
        """Store that views were reported now; forget those that are no longer there."""
        now = round(time.time(), 3)
        self.reports |= dict.fromkeys(due, now)
        self.states |= {name: states[name] for name in due}
        for kept in (self.reports, self.newest, self.states):
            for name in kept.keys() - states.keys():
                del kept[name]


@dataclass
class ReportedPolicy(Cursor):
    """The state that `watch_refresh` reported.

    heartbeat: when runs were last reported, in seconds since 1970.
    policy: the offsets of the policy, as PostgreSQL writes intervals.
    last: the id of the newest run; rows, slices: its work when it was reported. Later wake-ups
        add to them.
    """

    heartbeat: float = 0.0
    policy: dict[str, str] = field(default_factory=dict)
    last: int = 0
    rows: int = 0
    slices: int = 0

    @property
    def is_due(self) -> bool:
        """Whether it is time to report runs."""
        return time.time() - self.heartbeat >= REPORT_INTERVAL.total_seconds()


@dataclass
class ReportedDrift(Cursor):
    """The state that `watch_drift` reported.

    looked: when it last looked, in seconds since 1970.
    states: the day and the columns that drifted, by asset; another state is drawn.
    """

    looked: float = 0.0
    states: dict[str, str] = field(default_factory=dict)

    @property
    def is_due(self) -> bool:
        """Return whether the last look is old. Ticks are a minute apart, but not to the second."""
        return time.time() - self.looked >= REPORT_INTERVAL.total_seconds() - 30

    def note_look(self) -> None:
        """Store that all tables were judged now."""
        self.looked = round(time.time(), 3)
