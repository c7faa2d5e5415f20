"""Which column of a file is which, by the names in its header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from feature_platform.bar_rules import PRICES

REQUIRED = ("ts", *PRICES)

# The name of a column that is meant not to be there.
NONE = "none"

_TIMES = """
    ts time timestamp open_time opentime date datetime date_time unix unix_timestamp unix_time
    epoch gmt_time utc utc_time time_utc datetime_utc timestamp_utc date_utc time_(utc) date_(utc)
    timestamp_(utc) datetime_(utc) start start_time starttime startat begin window_start ts_event t
    candle_begin_time candle_time bucket local_time timestamp_ms timestamp_s dtyyyymmdd
    open_timestamp
"""

_PAIRS = """
    pair ticker instrument_name instrument asset product product_id currency_pair trading_pair
    market market_id inst_id instid sym tic coin contract security
"""

# By field, in ranks: a name of a later rank counts only where no name of an earlier one is there.
# Exact names only: Binance's files also hold close_time, quote_volume and taker_buy_volume.
KNOWN_NAMES: dict[str, tuple[frozenset[str], ...]] = {
    field: tuple(frozenset(rank.split()) for rank in ranks)
    for field, ranks in {
        "ts": (_TIMES,),
        "open": ("open", "o open_price openprice price_open px_open"),
        "high": ("high", "h high_price highprice price_high px_high"),
        "low": ("low", "l low_price lowprice price_low px_low"),
        "close": ("close", "c close_price closeprice price_close px_close close_last last"),
        "vol": (
            "vol volume",
            "v base_volume basevolume volume_base vol_base volume_(base) baseassetvolume",
            "real_volume",
            "tick_volume tickvol",
        ),
        "symbol": (
            "symbol",
            _PAIRS,
        ),
    }.items()
}

# Where dates stand in one column and the times of day in another.
CLOCK_NAMES = frozenset({"time", "clock", "time_of_day", "hhmm", "hhmmss"})

# A column without a name, as pandas writes an index that has none.
INDEX_NAMES = frozenset({"", "unnamed:_0", "index_level_0", "index"})

# A volume that names its currency; one of these is money, any other is the thing that is traded.
_VOLUME_OF = re.compile(r"vol(?:ume)?_\(?([a-z0-9]+)\)?")
_MONEY = """
    usd usdt usdc busd fdusd tusd dai eur gbp jpy krw try brl aud cad chf currency quote
"""
MONEY = frozenset(_MONEY.split())


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """The columns of a file that the platform does not recognise by itself.

    Each is the name in the header line or, for a file without one, the position counted from 1;
    None leaves it to the names that are recognised. `vol` may be "none": the file has no volume,
    and 0 is stored. `symbol` may be "none": the one symbol of the column is stored by another name.
    """

    ts: str | None = None
    open: str | None = None
    high: str | None = None
    low: str | None = None
    close: str | None = None
    vol: str | None = None
    symbol: str | None = None

    def given(self) -> dict[str, str]:
        """Return the columns that are named, by field."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {field: name for field, name in named if name is not None}

    def absent(self, field: str, names: Sequence[str]) -> bool:
        """Tell whether the caller states that the file has no such column."""
        return field in ("vol", "symbol") and self.given().get(field) == NONE and NONE not in names

    @property
    def renames(self) -> bool:
        """Tell whether the one symbol of a file is stored by another name."""
        return self.symbol == NONE


def plain(name: str) -> str:
    """Return a name of a column without what writers add: case, spaces, brackets, numbers."""
    text = re.sub(r"^\d+[.:]\s*", "", name.strip().strip("<>").lower())
    return re.sub(r"[\s_\-./]+", "_", text).strip("_")


def candidates(field: str, names: Sequence[str]) -> list[int]:
    """Return the positions of the columns whose names may mean a field."""
    spelt = [plain(name) for name in names]
    for rank in KNOWN_NAMES[field]:
        fits = [at for at, name in enumerate(spelt) if name in rank]
        if fits:
            return fits
    if field == "vol":
        found = [(at, match[1]) for at, n in enumerate(spelt) if (match := _VOLUME_OF.fullmatch(n))]
        return [at for at, currency in found if currency not in MONEY]
    return []


def listed(names: Sequence[str]) -> str:
    """Return names for a message, the first twenty."""
    shown = ", ".join(repr(name) for name in names[:20])
    return shown + (", …" if len(names) > 20 else "")
