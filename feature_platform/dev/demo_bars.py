"""A generated month of bars of three symbols, for `make demo` and the notebooks."""

from __future__ import annotations

import gzip
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from feature_platform.database import connect
from feature_platform.importer import import_bars
from feature_platform.queries import queries
from feature_platform.refresh import refresh
from feature_platform.schema import prepare
from feature_platform.settings import get_settings

START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTES = 31 * 1440


@dataclass(frozen=True)
class GeneratedSymbol:
    """The properties of one generated symbol: prices near `price`, in steps of `tick`."""

    symbol: str
    price: float
    tick: float
    minute_vol: float
    quiet: float  # the share of minutes without a trade, published with volume 0


SYMBOLS = (
    GeneratedSymbol("ALPHA/USDT", 64_000.0, 0.01, 0.0006, 0.0),
    GeneratedSymbol("BETA/USDT", 18.5, 0.001, 0.0011, 0.01),
    GeneratedSymbol("GAMMA/USDT", 0.0731, 0.00001, 0.0017, 0.12),
)


@dataclass(frozen=True)
class Files:
    """The files of one symbol, in the format of Binance's monthly files.

    month: the bars of a recorder: without two outages, and with some bars before their
        correction.
    late: later bars of the exchange: those of one outage, and the corrected ones.
    """

    symbol: str
    month: Path
    late: Path


def write_files(directory: Path) -> list[Files]:
    """Write the month of every symbol into a directory; the same files every time."""
    return [_write_symbol(directory, number, one) for number, one in enumerate(SYMBOLS)]


def fill_where_empty() -> bool:
    """Store the month and its late bars, with features; return whether that was needed.

    Only in the embedded server, and only while it has no bars: generated bars are never mixed
    with real ones.
    """
    if get_settings().database_url is not None:
        return False
    with connect() as connection:
        prepare(connection)
        if connection.execute(queries["demo_any_bar"]).fetchone() is not None:
            return False
        with tempfile.TemporaryDirectory() as directory:
            for files in write_files(Path(directory)):
                import_bars(
                    connection, [files.month, files.late], symbol=files.symbol, overwrite=True
                )
        refresh(connection)
    return True


def _write_symbol(directory: Path, seed: int, one: GeneratedSymbol) -> Files:
    random = np.random.default_rng(seed)
    bars = _true_bars(random, one)
    outage = MINUTES - (5 + seed) * 1440 + 540
    late = np.zeros(MINUTES, dtype=bool)
    late[outage : outage + 180] = True
    lost = np.zeros(MINUTES, dtype=bool)
    lost[outage + 2 * 1440 : outage + 2 * 1440 + 150] = True
    before = np.flatnonzero(bars["volume"][outage - 720 : outage] > 0) + outage - 720
    wrong = random.choice(before, 40, replace=False)
    recorded = bars.copy()
    recorded.loc[wrong, "volume"] = (recorded.loc[wrong, "volume"] * 0.4).round(3)
    name = one.symbol.replace("/", "")
    return Files(
        one.symbol,
        _write(directory / f"{name}-1m-2026-01.csv.gz", recorded[~late & ~lost]),
        _write(directory / f"{name}-1m-2026-01-late.csv.gz", bars[late | bars.index.isin(wrong)]),
    )


def _true_bars(random: np.random.Generator, one: GeneratedSymbol) -> pd.DataFrame:
    minute = np.arange(MINUTES)
    # Volatility and volume share a daily season and slow bursts, as in real market data.
    season = 1 + 0.45 * np.sin((minute % 1440) / 1440 * 2 * np.pi - 1.2)
    burst = np.exp(_smooth(random.normal(size=MINUTES), 240) * 5)
    activity = season * burst
    step = one.minute_vol * np.sqrt(activity)
    close = one.price * np.exp(np.cumsum(random.standard_t(4, MINUTES) * step * 0.7))
    open_ = np.concatenate(([one.price], close[:-1]))
    reach = np.abs(random.normal(size=(2, MINUTES))) * step * 0.6
    volume = random.gamma(1.6, 400_000 / one.price, MINUTES) * activity
    spikes = random.choice(MINUTES, 80, replace=False)
    volume[spikes] *= random.uniform(4, 12, 80)
    bars = pd.DataFrame(
        {
            "open_time": int(START.timestamp() * 1000) + minute * 60_000,
            "open": open_,
            "high": np.maximum(open_, close) * (1 + reach[0]),
            "low": np.minimum(open_, close) * (1 - reach[1]),
            "close": close,
            "volume": volume,
        }
    )
    quiet = random.random(MINUTES) < one.quiet
    for price in ("high", "low", "close"):
        bars[price] = bars[price].mask(quiet, bars["open"])
    bars["volume"] = bars["volume"].mask(quiet, 0.0)
    prices = ["open", "high", "low", "close"]
    digits = round(-np.log10(one.tick))
    bars[prices] = bars[prices].round(digits)
    bars["volume"] = bars["volume"].round(3)
    return bars


def _smooth(noise: np.ndarray, minutes: int) -> np.ndarray:
    kernel = np.hanning(minutes)
    smoothed: np.ndarray = np.convolve(noise, kernel / kernel.sum(), mode="same")
    return smoothed


def _write(path: Path, bars: pd.DataFrame) -> Path:
    with gzip.open(path, "wt", encoding="ascii", compresslevel=1) as file:
        bars.to_csv(file, index=False)
    return path
