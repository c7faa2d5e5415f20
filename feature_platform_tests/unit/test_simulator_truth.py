"""Guards against simulated bars that differ between requests, or are not realistic."""

from __future__ import annotations

import gzip
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_platform.errors import UserError
from feature_platform.simulator.markets import market_of
from feature_platform.simulator.truth import (
    FIRST_MINUTE,
    GeneratedTruth,
    MinuteBars,
    RecordedTruth,
)

START = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = int(START.timestamp()) // 60
MONTH = 30 * 1440
SYMBOLS = ("BTC/USDT", "XRP/ETH", "ALGO/USDT", "NEW/EUR", "TINY/BTC")
PRICES = ["open", "high", "low", "close"]
TRUTH = GeneratedTruth(SYMBOLS, seed=1)
THIN_FILE = Path(__file__).resolve().parents[2].parent / "shared/data/XRPETH-1m-2019-10-11.csv.gz"


def month(symbol: str) -> pd.DataFrame:
    return TRUTH.bars(symbol, START, START + timedelta(days=30))


def same(one: MinuteBars, other: MinuteBars) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in fields(MinuteBars)
    )


@given(
    symbol=st.sampled_from(SYMBOLS),
    first=st.integers(0, 400_000),
    before=st.integers(0, 2000),
    minutes=st.integers(0, 1500),
    behind=st.integers(0, 500),
)
def test_a_range_equals_its_part_of_a_longer_range(
    symbol: str, first: int, before: int, minutes: int, behind: int
) -> None:
    first += MINUTE
    part = TRUTH.minutes(symbol, first, first + minutes)
    whole = TRUTH.minutes(symbol, first - before, first + minutes + behind)
    assert len(part) == minutes
    assert same(part, whole.take(slice(before, before + minutes)))


def test_seed_and_symbol_determine_the_bars() -> None:
    again = GeneratedTruth(SYMBOLS, seed=1)
    other = GeneratedTruth(SYMBOLS, seed=2)
    bars = TRUTH.minutes("BTC/USDT", MINUTE, MINUTE + 500)
    assert same(bars, again.minutes("BTC/USDT", MINUTE, MINUTE + 500))
    assert not np.array_equal(bars.close, other.minutes("BTC/USDT", MINUTE, MINUTE + 500).close)
    returns = {name: np.diff(np.log(month(name)["close"])) for name in ("BTC/USDT", "NEW/EUR")}
    assert abs(np.corrcoef(*returns.values())[0, 1]) < 0.05


def test_bars_equal_those_of_earlier_versions() -> None:
    bars = GeneratedTruth(["BTC/USDT"], seed=0).bars(
        "BTC/USDT", START, START + timedelta(minutes=2)
    )
    assert bars.drop(columns="ts").to_numpy().tolist() == [
        [72172.69, 72178.15, 72110.08, 72158.52, 10.72119, 18],
        [72158.52, 72270.86, 72153.52, 72171.76, 28.77531, 49],
    ]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_every_bar_is_possible(symbol: str) -> None:
    bars = month(symbol)
    assert (bars["ts"].diff().iloc[1:] == pd.Timedelta(minutes=1)).all()
    assert (bars["low"] > 0).all()
    assert (bars["high"] >= bars[PRICES].max(axis=1)).all()
    assert (bars["low"] <= bars[PRICES].min(axis=1)).all()
    assert ((bars["vol"] == 0) == (bars["trades"] == 0)).all()
    flat = bars[bars["trades"] == 0]
    assert (flat[PRICES].nunique(axis=1) == 1).all()


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_open_is_the_close_of_the_bar_before(symbol: str) -> None:
    bars = month(symbol)
    assert np.array_equal(bars["open"].iloc[1:], bars["close"].iloc[:-1])


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_numbers_have_the_decimals_of_the_exchange(symbol: str) -> None:
    bars, market = month(symbol), market_of(symbol)
    for name in PRICES:
        written = [f"{value:.{market.price_decimals}f}" for value in bars[name]]
        assert [float(text) for text in written] == bars[name].tolist()
    written = [f"{value:.{market.volume_decimals}f}" for value in bars["vol"]]
    assert [float(text) for text in written] == bars["vol"].tolist()


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_prices_vary_like_real_ones(symbol: str) -> None:
    close = month(symbol)["close"]
    returns = np.diff(np.log(close))
    assert 2e-4 < returns.std() < 1e-3
    assert abs(returns).max() < 0.05
    assert abs(np.corrcoef(returns[1:], returns[:-1])[0, 1]) < 0.1
    assert close.max() / close.min() > 1.03
    assert 0.4 < close.mean() / market_of(symbol).price < 2.5


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_volume_has_a_season_and_spikes(symbol: str) -> None:
    bars = month(symbol)
    by_hour = bars.groupby(bars["ts"].dt.hour)["vol"].median()
    assert by_hour.max() / max(by_hour.min(), 1e-9) > 2
    usual = bars["vol"].median()
    assert 5 < (bars["vol"] > 20 * max(usual, 1e-9)).sum() < MONTH / 50


def test_the_share_of_quiet_minutes_is_as_configured() -> None:
    for symbol in SYMBOLS:
        share = (month(symbol)["trades"] == 0).mean()
        assert share == pytest.approx(market_of(symbol).quiet, abs=0.02)


def test_there_are_no_bars_before_the_first_minute() -> None:
    bars = TRUTH.minutes("BTC/USDT", FIRST_MINUTE - 10, FIRST_MINUTE + 3)
    assert bars.minute.tolist() == [FIRST_MINUTE, FIRST_MINUTE + 1, FIRST_MINUTE + 2]
    assert len(TRUTH.minutes("BTC/USDT", 0, 10)) == 0


@pytest.mark.parametrize("symbol", ["", "BTCUSDT", "btc/usdt", "BTC/USDT:USDT", "A/B/C"])
def test_a_symbol_that_is_no_spot_symbol_is_rejected(symbol: str) -> None:
    with pytest.raises(UserError, match="is not a symbol of a spot market"):
        GeneratedTruth([symbol])


def test_an_exchange_without_symbols_is_rejected() -> None:
    with pytest.raises(UserError, match="no symbol to simulate"):
        GeneratedTruth([])


def test_recorded_bars_equal_the_file(tmp_path: Path) -> None:
    bars = TRUTH.bars("XRP/ETH", START, START + timedelta(minutes=50))
    bars = bars[bars["trades"] > 0]
    path = tmp_path / "bars.csv.gz"
    bars.drop(columns="trades").to_csv(path, index=False)
    recorded = RecordedTruth("XRP/ETH", path)
    again = recorded.bars("XRP/ETH", START, START + timedelta(days=1))
    assert again["ts"].tolist() == bars["ts"].tolist()
    assert again[[*PRICES, "vol"]].to_numpy().tolist() == bars[[*PRICES, "vol"]].to_numpy().tolist()
    assert (again["trades"] > 0).all()
    inner = recorded.bars("XRP/ETH", bars["ts"].iloc[3], bars["ts"].iloc[7])
    assert inner["ts"].tolist() == bars["ts"].iloc[3:7].tolist()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1772323200000,1,1,1,1,1", "1772323260000,1,0.5,1,1,1"], ":3: high 0.5 is below"),
        (["1772323260000,1,1,1,1,1", "1772323200000,1,1,1,1,1"], "ascending order"),
        (["1772323200001,1,1,1,1,1"], "is not the start of a minute"),
    ],
)
def test_a_file_with_wrong_rows_is_rejected(tmp_path: Path, rows: list[str], message: str) -> None:
    path = tmp_path / "bars.csv"
    path.write_text("\n".join(["open_time,open,high,low,close,volume", *rows]))
    with pytest.raises(UserError, match=message):
        RecordedTruth("A/B", path)


@pytest.mark.skipif(not THIN_FILE.exists(), reason="../shared/data does not exist")
def test_a_real_file_with_quiet_minutes_is_served() -> None:
    with gzip.open(THIN_FILE, "rt") as lines:
        rows = len(lines.readlines()) - 1
    recorded = RecordedTruth("XRP/ETH", THIN_FILE)
    start = datetime(2019, 10, 11, tzinfo=UTC)
    bars = recorded.bars("XRP/ETH", start, start + timedelta(days=30))
    assert len(bars) == rows == 2469
    assert recorded.first == int(bars["ts"].iloc[0].timestamp()) // 60
