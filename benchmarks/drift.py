"""False alarms of drift on years of the simulator's stationary symbols, and the shifts it finds.

The features are computed here with NumPy, and judged by the functions that judge the database's
rows: ten million looks at a database would take weeks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.bars import create_generator, load_bars, moment, refresh, settle
from benchmarks.harness import Ratio, Result, Workbench, require
from feature_platform.drift import (
    BINS,
    FEATURES,
    HOURS,
    LOW,
    MEAN_MINUTES,
    QUANTILE_MINUTES,
    STATISTICS,
    STEP,
    Days,
    Floats,
    Hours,
    judge,
    reference_of,
    usual_days,
    usual_hours,
)
from feature_platform.settings import Settings
from feature_platform.simulator.truth import DAY, FIRST_MINUTE, GeneratedTruth, MinuteBars

SEED = 12
YEARS = 100  # of different symbols
SYMBOLS = 5  # in the database
LOOK = 5  # minutes between two looks
# The newest row that a look sees: it is stored 75 seconds after its minute, at the latest.
LATE = 2
ONSETS = 200  # of a shift, for each symbol-year and column
# Alarms less than an hour apart are one.
APART = 60 // LOOK
# Days between two references of the distribution, which the platform computes every day.
STALE = 10


@dataclass
class Column:
    """The counts of one column over all symbol-years.

    alarms, day_alarms: of the last hour, and of the last day. judged: the part of days with a
    judged hour. found: shifts found within an hour; shifts: those that began while it was judged.
    """

    alarms: int = 0
    day_alarms: int = 0
    judged: list[float] = field(default_factory=list)
    found: int = 0
    shifts: int = 0


@dataclass
class Outcome:
    """The counts of all columns; alarms: of symbols, whose columns' alarms often coincide."""

    years: float = 0.0
    alarms: int = 0
    columns: dict[str, Column] = field(default_factory=dict)


def run(bench: Workbench) -> Result:
    """Measure false alarms and found shifts, and the time of a look at a database."""
    days = bench.scaled(YEARS * 365)
    symbols = -(-days // 365)
    bench.show(f"{symbols} symbols, {min(days, 365)} days each, a look every {LOOK} minutes")
    outcome = simulate(symbols, min(days, 365))
    figures: dict[str, float] = {"symbol-years": outcome.years}
    found = []
    for name, column in outcome.columns.items():
        figures[f"{name}: alarms of the last hour a symbol-year"] = column.alarms / outcome.years
        figures[f"{name}: alarms of the last day a symbol-year"] = column.day_alarms / outcome.years
        figures[f"{name}: part of the days with a judged hour"] = float(np.mean(column.judged))
        if column.shifts >= ONSETS:
            found.append(column.found / column.shifts)
            figures[f"{name}: part of the shifts found within an hour"] = found[-1]
    return Result(
        ratios=[
            Ratio(
                "symbol-years to each false alarm, all columns together",
                outcome.years / max(outcome.alarms, 1),
                at_least=1,
            ),
            Ratio(
                "shifts of one standard deviation found in an hour, worst of the judged columns",
                min(found),
                at_least=0.95,
            ),
        ],
        figures={what: figure for what, figure in figures.items() if figure},
        seconds=_look_seconds(bench),
    )


def _look_seconds(bench: Workbench) -> dict[str, list[float]]:
    """Measure the reference and a look of each of some symbols."""
    settings = Settings()
    seconds: dict[str, list[float]] = {"a reference of a symbol": [], "a look at a symbol": []}
    numbers = range(1, bench.scaled(SYMBOLS) + 1)
    days = settings.drift_days + 2
    with bench.database("drift") as connection:
        create_generator(connection)
        load_bars(connection, numbers, range(days * DAY))
        refresh(connection)
        settle(connection)
        until, end = moment((days - 1) * DAY), moment(days * DAY)
        for number in numbers:
            symbol = f"SYM{number:04}/USDT"
            began = time.perf_counter()
            reference = reference_of(connection, FEATURES, symbol, until, settings)
            computed = time.perf_counter()
            judged = judge(connection, FEATURES, symbol, end, reference, settings)
            seconds["a reference of a symbol"].append(computed - began)
            seconds["a look at a symbol"].append(time.perf_counter() - computed)
            require(len(FEATURES.columns), len(judged), "judged columns")
    return seconds


def simulate(years: int, days: int, seed: int = SEED) -> Outcome:
    """Judge some days of each of some symbols after a reference.

    years: the number of symbols; days: of each.
    """
    settings = Settings()
    outcome = Outcome()
    chance = np.random.default_rng(seed)
    symbols = [f"SYM{number:04}/USDT" for number in range(years)]
    truth = GeneratedTruth(symbols, seed=seed)
    before = settings.drift_days + 1  # and a day without a reference
    for symbol in symbols:
        # The first day fills the windows of a day.
        end = FIRST_MINUTE + (before + days + 1) * DAY
        alarms = np.zeros(days * DAY // LOOK, dtype=bool)
        for name, values in features(truth.minutes(symbol, FIRST_MINUTE, end)).items():
            column = outcome.columns.setdefault(name, Column())
            alarms |= _judge(values, before, settings, column, chance)
        outcome.alarms += episodes(alarms)
        outcome.years += days / 365
    return outcome


def features(bars: MinuteBars) -> dict[str, Floats]:
    """Return the columns of features_1m, without the first day."""
    close, volume = bars.close, bars.volume

    def windows(values: Floats) -> Floats:
        total = np.concatenate([[0.0], np.cumsum(values)])
        mean: Floats = (total[DAY:] - total[:-DAY]) / DAY
        return mean[1:]

    mean = windows(volume)
    spread = np.sqrt(np.maximum(windows(volume**2) - mean**2, 0))
    price = (bars.open + bars.high + bars.low + bars.close) / 4
    return {
        "last_close": close[DAY:],
        "vol": volume[DAY:],
        "log_return": np.diff(np.log(close))[DAY - 1 :],
        "n_1d": np.full(len(mean), float(DAY)),
        "ma_vol_1d": mean,
        "std_vol_1d": spread,
        "volume_z": (volume[DAY:] - mean) / spread,
        "vwap_gap": (close - price)[DAY:],
        "parkinson_vol": 0.5 * np.log(bars.high / bars.low)[DAY:] ** 2,
    }


def statistics(windows: Floats, steps: Floats) -> Floats:
    """Return the statistics of hours, as `drift_hours` does.

    windows: the 60 values of each; steps: the absolute steps to each of them.
    """
    return np.stack([statistic(number, windows, steps) for number in range(len(STATISTICS))], -1)


def statistic(number: int, windows: Floats, steps: Floats) -> Floats:
    """Return one of the statistics of hours."""
    found: Floats
    if STATISTICS[number] == "mean":
        found = windows[..., -MEAN_MINUTES:].mean(-1)
    elif number == STEP:
        found = steps.max(-1)
    else:
        place = LOW * (QUANTILE_MINUTES - 1)
        first, part = int(place), place - int(place)
        last = QUANTILE_MINUTES - 1 - first
        at, beside = (
            (first, first + 1) if STATISTICS[number] == "low quantile" else (last, last - 1)
        )
        ordered = np.partition(windows[..., -QUANTILE_MINUTES:], (at, beside), axis=-1)
        found = ordered[..., at] * (1 - part) + ordered[..., beside] * part
    return found


def episodes(alarms: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
    """Return the number of alarms that are at least an hour after the one before."""
    return int((np.diff(np.flatnonzero(alarms), prepend=-APART - 1) > APART).sum())


def _judge(
    values: Floats, before: int, settings: Settings, column: Column, chance: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Judge the days after the first `before` ones; return whether each look has an alarm."""
    days = len(values) // DAY
    steps = np.abs(np.diff(values, prepend=values[0]))
    hours = statistics(values.reshape(days, HOURS, 60), steps.reshape(days, HOURS, 60))
    by_day = values.reshape(days, DAY)
    means, squares = by_day.mean(1), (by_day**2).mean(1)
    alarms = np.zeros((days - before, DAY // LOOK), dtype=bool)
    at = np.arange(0, DAY, LOOK) / 60
    usual: list[Hours | None] = []
    for day in range(before, days):
        past = slice(day - before, day - 1)
        variance = squares[past].mean() - means[past].mean() ** 2
        deviation = float(np.sqrt(variance)) if variance > 1e-12 * squares[past].mean() else 0.0
        one = usual_hours(hours[past], deviation, settings.drift_shift)
        usual.append(one)
        column.judged.append(float(one is not None and one.limit < 1))
        if one is not None and one.limit < 1:
            ends = np.arange(day * DAY, (day + 1) * DAY, LOOK) - 60
            looks = np.full((len(ends), len(STATISTICS)), np.nan)
            looks[:, one.statistic] = statistic(
                one.statistic,
                sliding_window_view(values, 60)[ends],
                sliding_window_view(steps, 60)[ends],
            )
            alarms[day - before] = np.abs(one.shift(looks, at)) > one.limit
    column.alarms += episodes(alarms.ravel())
    for onset in chance.integers(before * DAY, days * DAY - 60, ONSETS):
        one = usual[onset // DAY - before]
        if one is not None and one.limit < 1:
            column.shifts += 1
            column.found += _found(values, int(onset), one, chance)
    by_days = np.zeros(alarms.shape, dtype=bool)
    for places, alarm in _day_alarms(by_day, before, settings):
        by_days[places] = alarm
    column.day_alarms += int((np.diff(by_days.any(1).astype(int), prepend=0) == 1).sum())
    flat: np.ndarray[tuple[int], np.dtype[np.bool_]] = (alarms | by_days).ravel()
    return flat


def _found(values: Floats, onset: int, usual: Hours, chance: np.random.Generator) -> bool:
    """Return whether looks find a shift of one standard deviation in the hour after an onset."""
    shift = usual.deviation * chance.choice([-1, 1])
    part = values[onset - 61 : onset + 60].copy()
    part[61:] += shift
    ends = np.arange(chance.integers(1, LOOK + 1), 61 - LATE, LOOK)  # minutes after the onset
    windows = sliding_window_view(part[1:], 60)[ends]
    steps = sliding_window_view(np.abs(np.diff(part)), 60)[ends]
    shifts = usual.shift(statistics(windows, steps), ((onset + ends) % DAY) / 60)
    return bool((np.abs(shifts) > usual.limit).any())


def _day_alarms(
    by_day: Floats, before: int, settings: Settings
) -> Iterator[tuple[tuple[int, slice], bool]]:
    """Yield whether each half of a day ends with an alarm of its last 24 hours."""
    days = len(by_day)
    halves = 2
    flat = by_day.ravel()
    fractions = np.arange(1, BINS) / BINS
    reference: Days | None = None
    for day in range(before, days):
        if (day - before) % STALE == 0:
            past = by_day[day - before : day - 1]
            edges = np.quantile(past, fractions)
            reference = usual_days(_binned(past, edges), edges, settings.drift_psi)
        assert reference is not None
        for half in range(halves):
            end = day * DAY + half * DAY // halves
            psi, _, probability = reference.judge(
                _binned(flat[end - DAY : end].reshape(1, -1), reference.edges)[0]
            )
            first = half * DAY // halves // LOOK
            looks = slice(first, first + DAY // halves // LOOK)
            alarm = psi > reference.psi_limit or probability < settings.drift_ks
            yield (day - before, looks), alarm


def _binned(days: Floats, edges: Floats) -> Floats:
    bins = np.searchsorted(edges, days, side="right") + np.arange(len(days))[:, None] * BINS
    return np.bincount(bins.ravel(), minlength=len(days) * BINS).reshape(-1, BINS).astype(float)
