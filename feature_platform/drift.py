"""Drift: whether a column's values of now are distributed as those of the days before.

Two judgements of each symbol and column:

- the shift of the last hour, in standard deviations of the column. It is judged by the statistic
  that varied least in the reference's own hours, which suits skewed columns and levels, too;
- the distribution of the last day beside that of the reference: the population stability index and
  the Kolmogorov-Smirnov distance, each compared with those of the reference's own days.

The values stay in the database, which returns counts and one row for each hour. That is why the
index is computed here: libraries for it take raw values, of which 100 symbols have 39 million.
This module does not import Dagster.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from feature_platform.counted import counted
from feature_platform.queries import queries
from feature_platform.settings import Settings
from feature_platform.tables import FEATURES as FEATURE_NAMES
from feature_platform.views.catalog import Version

Floats = NDArray[np.float64]

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
HOURS = 24
# The newest minutes of an hour that its mean reads, and those that its quantiles read: a look every
# five minutes then finds one with only shifted values within an hour of the shift.
MEAN_MINUTES = 52
QUANTILE_MINUTES = 45
LOW = 0.05
STATISTICS = ("mean", "low quantile", "high quantile", "largest step")
STEP = STATISTICS.index("largest step")
# How many times the largest deviation of the reference's hours a shift must be at least.
MARGIN = 1.1
# The bins of equal numbers of the reference's values, for the index and the distance.
BINS = 20
# The fewest days of a reference.
LEAST_DAYS = 7
# How many times the largest index of the reference's own days an index must be at least.
PSI_MARGIN = 8.0


@dataclass(frozen=True)
class Table:
    """A table whose columns are judged: features_1m, or a feature view.

    version: of the view; a new one begins new references.
    every: the bar width.
    """

    name: str
    version: int
    every: timedelta
    columns: tuple[str, ...]


FEATURES = Table("features_1m", 0, timedelta(minutes=1), FEATURE_NAMES)


@dataclass(frozen=True)
class Hours:
    """The usual hours of a column.

    statistic: the number of the statistic that judges it.
    profile: the usual value of that statistic, by hour of the UTC day.
    deviation: the standard deviation of the column's values.
    limit: the shift that is an alarm, in standard deviations; NaN if shifts of one standard
        deviation are usual, so that this column is not judged.
    """

    statistic: int
    profile: Floats
    deviation: float
    limit: float

    def shift(self, statistics: Floats, end: Floats) -> Floats:
        """Return the shift of hours from their usual values, in standard deviations.

        statistics: of each hour, in the order of STATISTICS.
        end: of each hour, in hours of the UTC day.
        """
        # The profile of an hour is that of its middle; between two of them it is interpolated.
        middle = np.mod(end - 0.5, HOURS) - 0.5
        around = np.concatenate([self.profile[-1:], self.profile, self.profile[:1]])
        usual = np.interp(middle, np.arange(-1, HOURS + 1), around)
        found: Floats = (statistics[..., self.statistic] - usual) / self.deviation
        return found


def usual_hours(statistics: Floats, deviation: float, shift: float) -> Hours | None:
    """Return the usual hours of a column, None if its values do not vary or are too few.

    statistics: of each day and hour of the reference; NaN where rows are missing.
    shift: the least shift that is an alarm, in standard deviations.
    """
    known = np.isfinite(statistics).all(-1)
    if not deviation > 0 or known.sum() < LEAST_DAYS * HOURS or not known.any(0).all():
        return None
    # NumPy's median that skips NaN is ten times as slow.
    median = np.median if known.all() else np.nanmedian
    profile: Floats = median(statistics, axis=0)
    largest = np.nanmax(np.abs(statistics - profile), axis=(0, 1))
    limits = MARGIN * largest / deviation
    # Steps have a tail, which is the heavier the more the largest exceeds the usual one.
    limits[STEP] *= 2 * largest[STEP] / max(float(np.median(profile[:, STEP])), 1e-300)
    best = int(np.argmin(limits))
    limit = max(shift, float(limits[best]))
    return Hours(best, profile[:, best], deviation, limit if limit < 1 else np.nan)


def stability_index(counts: Floats, reference: Floats) -> Floats:
    """Return the population stability index of days; half a value is added to each bin.

    counts: by day and bin; reference: by bin.
    """
    now = (counts + 0.5) / (counts + 0.5).sum(-1, keepdims=True)
    usual = (reference + 0.5) / (reference + 0.5).sum(-1, keepdims=True)
    index: Floats = ((now - usual) * np.log(now / usual)).sum(-1)
    return index


def distance(counts: Floats, reference: Floats) -> Floats:
    """Return the Kolmogorov-Smirnov distance of days, at the edges of the bins.

    With bins of a twentieth of the values it is at most 0.05 too small.
    """
    usual = np.cumsum(reference) / reference.sum()
    now = np.cumsum(counts, axis=-1) / counts.sum(-1, keepdims=True)
    found: Floats = np.abs(now - usual).max(-1)
    return found


@dataclass(frozen=True)
class Days:
    """The usual distribution of a column.

    edges: between the bins; counts: the reference's values in each bin.
    psi_limit: the index that is an alarm.
    size: the number of independent values that a day is worth, by the distances of the reference's
        own days: neighbouring minutes are alike, so it is far below the number of rows.
    """

    edges: Floats
    counts: Floats
    psi_limit: float
    size: float

    def judge(self, counts: Floats) -> tuple[float, float, float]:
        """Return the index, the distance and the distance's probability for the last day."""
        from scipy.special import kolmogorov

        psi = float(stability_index(counts, self.counts))
        ks = float(distance(counts, self.counts))
        return psi, ks, float(kolmogorov(ks * np.sqrt(self.size)))


def usual_days(counts: Floats, edges: Floats, psi: float) -> Days | None:
    """Return the usual distribution of a column; None if too few days have values.

    counts: by day of the reference and bin.
    psi: the least index that is an alarm.
    """
    from scipy.special import kolmogi

    filled = counts[counts.sum(-1) > 0]
    if len(filled) < LEAST_DAYS:
        return None
    total = counts.sum(0)
    largest = float(distance(filled, total).max())
    # The largest distance of that many days, if it is the median one. A constant column has none.
    usual = float(kolmogi(1 - 0.5 ** (1 / len(filled))))
    size = (usual / largest) ** 2 if largest > 0 else 1.0
    limit = max(psi, PSI_MARGIN * float(stability_index(filled, total).max()))
    return Days(edges, total, limit, size)


@dataclass(frozen=True)
class Drift:
    """The judgement of one symbol and column; NaN for a part that could not be judged.

    statistic: the one that judges the last hour; shift: of the last hour, in standard deviations;
        shift_limit: the shift that is an alarm, NaN if the column's hours vary too much.
    psi: the index of the last day; psi_limit: the index that is an alarm.
    ks: the distance of the last day; ks_chance: the probability of a day's distance to be larger.
    bins: the part of the last day's values in each bin of a twentieth of the reference's values.
    """

    symbol: str
    column: str
    statistic: str
    shift: float
    shift_limit: float
    psi: float
    psi_limit: float
    ks: float
    ks_chance: float
    alarms: tuple[str, ...]
    bins: Floats = field(repr=False)

    @property
    def rank(self) -> float:
        """Return a number that is larger the closer the values are to an alarm, or beyond one."""
        parts = (abs(self.shift) / self.shift_limit, self.psi / self.psi_limit, 0.0)
        return len(self.alarms) + float(np.nanmax(parts))


@dataclass(frozen=True)
class Report:
    """The judgement of a table, the columns that are closest to an alarm first.

    end: of the last hour and day. waiting: symbols whose reference is not computed yet.
    """

    table: Table
    end: datetime
    found: list[Drift]
    waiting: int

    @property
    def alarms(self) -> list[Drift]:
        """Return the columns that drift."""
        return [one for one in self.found if one.alarms]

    @property
    def summary(self) -> str:
        """Return one line for people."""
        wait = f"; without a reference yet: {self.waiting:,}" if self.waiting else ""
        if not self.found:
            return f"no symbol has rows of the last day and of {LEAST_DAYS} days before it{wait}"
        symbols = counted(len({one.symbol for one in self.found}), "symbol")
        text = f"{symbols} judged until {self.end:%F %H:%M} UTC"
        if not self.alarms:
            return f"{text}: no column drifts{wait}"
        first = ", ".join(f"{one.symbol} {one.column} ({one.alarms[0]})" for one in self.alarms[:3])
        return f"{text}: drift in {counted(len(self.alarms), 'column')}: {first}{wait}"


@dataclass(frozen=True)
class Reference:
    """The usual hours and days of a symbol's columns in the days before a UTC day."""

    until: datetime
    hours: list[Hours | None]
    days: list[Days | None]


class Watch:
    """The references of all tables and symbols, in memory; each is computed once a day.

    seconds: the most that a look spends on references; a symbol keeps that of the day before
        until a later look has the time. None: no limit.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._references: dict[tuple[str, int, str], Reference] = {}

    def look(self, connection: psycopg.Connection[Any], table: Table, settings: Settings) -> Report:
        """Judge the last hour and the last day of each symbol of a table."""
        began = time.monotonic()
        row = connection.execute(queries["drift_symbols"]).fetchone()
        assert row is not None, "the statement always gives one row"
        end, symbols = row[0].astimezone(UTC), row[1]
        until = (end - DAY).replace(hour=0, minute=0)
        found: list[Drift] = []
        waiting = 0
        for symbol in symbols:
            key = (table.name, table.version, symbol)
            known = self._references.get(key)
            if known is None or known.until != until:
                if self.seconds is None or time.monotonic() - began < self.seconds:
                    known = reference_of(connection, table, symbol, until, settings)
                    self._references[key] = known
                elif known is None:
                    waiting += 1
                    continue
            found += judge(connection, table, symbol, end, known, settings)
        return Report(table, end, sorted(found, key=lambda one: -one.rank), waiting)


def table_of(view: Version) -> Table:
    """Return the table of a feature view."""
    return Table(view.name, view.version, view.every, tuple(view.columns))


def reference_of(
    connection: psycopg.Connection[Any],
    table: Table,
    symbol: str,
    until: datetime,
    settings: Settings,
) -> Reference:
    """Compute the usual hours and days of a symbol's columns, in the days before a UTC day."""
    window = {"symbol": symbol, "start": until - settings.drift_days * DAY, "end": until}
    edges = np.full((len(table.columns), BINS - 1), np.inf)
    deviations = np.zeros(len(table.columns))
    fractions = [part / BINS for part in range(1, BINS)]
    for number, deviation, found in _rows(
        connection, "drift_edges", table, {**window, "fractions": fractions}
    ):
        deviations[number - 1], edges[number - 1] = deviation, found
    counts = day_counts(connection, table, window, edges)
    days = [usual_days(counts[:, at], edges[at], settings.drift_psi) for at in range(len(edges))]
    hours: list[Hours | None] = [None] * len(edges)
    if table.every <= HOUR:
        statistics = hour_statistics(connection, table, window)
        by_day = statistics.reshape(settings.drift_days, HOURS, len(edges), len(STATISTICS))
        hours = [
            usual_hours(by_day[:, :, at], float(deviations[at]), settings.drift_shift)
            for at in range(len(edges))
        ]
    return Reference(until, hours, days)


def judge(
    connection: psycopg.Connection[Any],
    table: Table,
    symbol: str,
    end: datetime,
    reference: Reference,
    settings: Settings,
) -> list[Drift]:
    """Judge the last hour and the last day before a time; skips columns without values."""
    if not any(reference.days):
        return []
    hour = {"symbol": symbol, "start": end - HOUR, "end": end}
    statistics = np.full((len(table.columns), len(STATISTICS)), np.nan)
    if any(reference.hours):
        statistics = hour_statistics(connection, table, hour)[0]
    edges = np.stack(
        [np.full(BINS - 1, np.inf) if days is None else days.edges for days in reference.days]
    )
    counts = day_counts(connection, table, {**hour, "start": end - DAY}, edges)[0]
    at = np.asarray((end - end.replace(hour=0, minute=0)) / HOUR)
    found = []
    for number, column in enumerate(table.columns):
        hours, days = reference.hours[number], reference.days[number]
        values = counts[number].sum()
        if days is None or not values:
            continue
        psi, ks, chance = days.judge(counts[number])
        shift = limit = np.nan
        if hours is not None:
            shift, limit = float(hours.shift(statistics[number], at)), hours.limit
        alarms = []
        if abs(shift) > limit:
            alarms.append(f"the last hour is shifted by {shift:+.2f} standard deviations")
        if psi > days.psi_limit:
            alarms.append(f"the last day has a stability index of {psi:.2f}")
        if chance < settings.drift_ks:
            alarms.append(f"the last day has a Kolmogorov-Smirnov distance of {ks:.2f}")
        found.append(
            Drift(
                symbol=symbol,
                column=column,
                statistic="" if hours is None else STATISTICS[hours.statistic],
                shift=shift,
                shift_limit=limit,
                psi=psi,
                psi_limit=days.psi_limit,
                ks=ks,
                ks_chance=chance,
                alarms=tuple(alarms),
                bins=counts[number] / values,
            )
        )
    return found


def day_counts(
    connection: psycopg.Connection[Any], table: Table, window: Mapping[str, Any], edges: Floats
) -> Floats:
    """Return the number of values by day of a window, column and bin."""
    days = round((window["end"] - window["start"]) / DAY)
    counts = np.zeros((days, len(table.columns), BINS))
    given = {**window, "edges": edges.tolist()}
    for number, day, place, count in _rows(connection, "drift_counts", table, given):
        counts[day, number - 1, place] = count
    return counts


def hour_statistics(
    connection: psycopg.Connection[Any], table: Table, window: Mapping[str, Any]
) -> Floats:
    """Return the statistics by hour of a window and column; NaN where half of the values miss."""
    hours = round((window["end"] - window["start"]) / HOUR)
    found = np.full((hours, len(table.columns), len(STATISTICS)), np.nan)
    quantile = timedelta(minutes=QUANTILE_MINUTES)
    given = {
        **window,
        "every": table.every,
        "mean": timedelta(minutes=MEAN_MINUTES),
        "quantile": quantile,
        "fractions": [LOW, 1 - LOW],
        "least": max(1.0, quantile / table.every / 2),
    }
    for number, hour, mean, (low, high), step in _rows(connection, "drift_hours", table, given):
        found[hour, number - 1] = (mean, low, high, step)
    return found


def _rows(
    connection: psycopg.Connection[Any], query: str, table: Table, given: Mapping[str, Any]
) -> Sequence[tuple[Any, ...]]:
    statement = sql.SQL(queries[query]).format(
        view=sql.Identifier("public", table.name),
        columns=sql.SQL(", ").join(map(sql.Identifier, table.columns)),
    )
    return connection.execute(statement, given, binary=True).fetchall()
