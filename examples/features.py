"""Feature views to start from: `feature-platform views apply examples/features.py`.

Each view becomes a table that stays equal to these formulas over the bars, whatever arrives late
or is corrected. docs/views.md has every function.
"""

from __future__ import annotations

from feature_platform.views import (
    FeatureView,
    abs,
    aggregate,
    bar,
    corr,
    ema,
    greatest,
    lag,
    ln,
    max,
    mean,
    min,
    std,
    where,
    zscore,
)

log_return = ln(bar.close / lag(bar.close))

momentum = FeatureView(
    name="momentum_1m",
    every="1 minute",
    description="Returns and volatilities over several horizons.",
    columns={
        "return_5m": ln(bar.close / lag(bar.close, "5 minutes")),
        "return_1h": ln(bar.close / lag(bar.close, "1 hour")),
        "return_1d": ln(bar.close / lag(bar.close, "1 day")),
        "volatility_1h": std(log_return, "1 hour"),
        "volatility_1d": std(log_return, "1 day"),
        "volume_z_4h": zscore(bar.vol, "4 hours"),
        "return_volume_corr_1h": corr(log_return, bar.vol, "1 hour"),
        "range_20m": max(bar.high, "20 minutes") / min(bar.low, "20 minutes") - 1,
        "median_return_30m": aggregate("percentile_cont(0.5)", log_return, "30 minutes"),
    },
)

change = bar.close - lag(bar.close)
gain = ema(where(change > 0, change, 0), "14 minutes")
loss = ema(where(change < 0, -change, 0), "14 minutes")
macd = ema(bar.close, "12 minutes") - ema(bar.close, "26 minutes")
true_range = greatest(
    bar.high - bar.low, abs(bar.high - lag(bar.close)), abs(bar.low - lag(bar.close))
)

oscillators = FeatureView(
    name="oscillators_1m",
    every="1 minute",
    description="RSI, MACD and average true range, with time-decayed means.",
    columns={
        "rsi_14m": 100 - 100 / (1 + gain / loss),
        "macd": macd,
        "macd_signal": ema(macd, "9 minutes"),
        "atr_14m": mean(true_range, "14 minutes"),
    },
)

# A span of a week makes each correction dirty a week of rows: it has a view of its own.
weekly = FeatureView(
    name="weekly_1m",
    every="1 minute",
    description="Scores against the last week.",
    columns={"volume_z_7d": zscore(bar.vol, "7 days"), "close_z_7d": zscore(bar.close, "7 days")},
)

candle = {
    "open": bar.open,
    "high": bar.high,
    "low": bar.low,
    "close": bar.close,
    "vol": bar.vol,
    "vwap": bar.vwap,
    "minutes": bar.n,
}
candles_1h = FeatureView(
    name="candles_1h", every="1 hour", description="Candles of an hour.", columns=candle
)
candles_1d = FeatureView(
    name="candles_1d", every="1 day", description="Candles of a UTC day.", columns=candle
)
