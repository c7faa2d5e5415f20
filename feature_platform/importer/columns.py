"""Find the columns of the bars' fields by the names in a file's header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from feature_platform.bar_rules import PRICES

REQUIRED = ("ts", *PRICES)

# Given by the caller in place of a column's name: the file has no such column.
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

# The names of each field, in ranks: a name of a later rank counts only in a file without a name of
# an earlier rank. Names must match exactly, because Binance's files also hold close_time,
# quote_volume and taker_buy_volume.
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

# Names of a column of times of day, in files whose dates stand in another column.
CLOCK_NAMES = frozenset({"time", "clock", "time_of_day", "hhmm", "hhmmss"})

# Names that pandas writes for an index without a name.
INDEX_NAMES = frozenset({"", "unnamed:_0", "index_level_0", "index"})

# A volume whose name holds its currency. One of MONEY is a quote currency, any other is the asset
# that is traded.
_VOLUME_OF = re.compile(r"vol(?:ume)?_\(?([a-z0-9]+)\)?")
_MONEY = """
    usd usdt usdc busd fdusd tusd dai eur gbp jpy krw try brl aud cad chf currency quote
"""
MONEY = frozenset(_MONEY.split())


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """The columns of a file that the caller names.

    Each is the name in the header line or, for a file without a header, the position counted
    from 1; with None, the column is found by the known names. `vol` may be "none": the file has no
    volume, and 0 is stored. `symbol` may be "none": the file's one symbol is stored under another
    name.
    """

    ts: str | None = None
    open: str | None = None
    high: str | None = None
    low: str | None = None
    close: str | None = None
    vol: str | None = None
    symbol: str | None = None

    def given(self) -> dict[str, str]:
        """Return the columns that the caller names, by field."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {field: name for field, name in named if name is not None}

    def absent(self, field: str, names: Sequence[str]) -> bool:
        """Return whether the caller states that the file has no such column."""
        return field in ("vol", "symbol") and self.given().get(field) == NONE and NONE not in names

    @property
    def renames(self) -> bool:
        """Return whether the file's one symbol is stored under another name."""
        return self.symbol == NONE


def plain(name: str) -> str:
    """Return a column's name in lower case, with `_` between words, without `<>` and `1.`."""
    text = re.sub(r"^\d+[.:]\s*", "", name.strip().strip("<>").lower())
    return re.sub(r"[\s_\-./]+", "_", text).strip("_")


def candidates(field: str, names: Sequence[str]) -> list[int]:
    """Return the positions of the columns that may hold a field, by their names."""
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
