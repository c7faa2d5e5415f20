"""Declare feature views: tables of windowed features that the platform keeps exact.

from feature_platform.views import FeatureView, bar, lag, ln, std

momentum = FeatureView(
    name="momentum_1m", every="1 minute",
    columns={"volatility_1d": std(ln(bar.close / lag(bar.close)), "1 day")},
)
"""

from __future__ import annotations

from feature_platform.views.expressions import (
    Expression,
    abs,
    aggregate,
    bar,
    beta,
    corr,
    count,
    cov,
    ema,
    exp,
    first,
    greatest,
    lag,
    last,
    least,
    ln,
    log_ratio,
    max,
    mean,
    min,
    sign,
    sqrt,
    std,
    sum,
    var,
    where,
    zscore,
)
from feature_platform.views.view import FeatureView

__all__ = [
    "Expression",
    "FeatureView",
    "abs",
    "aggregate",
    "bar",
    "beta",
    "corr",
    "count",
    "cov",
    "ema",
    "exp",
    "first",
    "greatest",
    "lag",
    "last",
    "least",
    "ln",
    "log_ratio",
    "max",
    "mean",
    "min",
    "sign",
    "sqrt",
    "std",
    "sum",
    "var",
    "where",
    "zscore",
]
