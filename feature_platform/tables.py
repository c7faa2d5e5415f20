"""The columns of the tables and their types."""

from __future__ import annotations

# Types as PostgreSQL formats them.
BAR_COLUMNS = {
    "symbol": "text",
    "ts": "timestamp with time zone",
    "open": "double precision",
    "high": "double precision",
    "low": "double precision",
    "close": "double precision",
    "vol": "double precision",
    "source": "text",
    "inserted_at": "timestamp with time zone",
}
FEATURE_COLUMNS = {
    "symbol": "text",
    "bucket": "timestamp with time zone",
    "last_close": "double precision",
    "vol": "double precision",
    "log_return": "double precision",
    "n_1d": "integer",
    "ma_vol_1d": "double precision",
    "std_vol_1d": "double precision",
    "volume_z": "double precision",
    "vwap_gap": "double precision",
    "parkinson_vol": "double precision",
    "refresh_no": "bigint",
}

FEATURES = tuple(name for name in FEATURE_COLUMNS if name not in ("symbol", "bucket", "refresh_no"))
