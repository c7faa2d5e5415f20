"""Feature rows and symbols in the service's requests and answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# PostgreSQL's text has no NUL.
Symbol = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]+$"),
    Field(examples=["BTC/USDT"]),
]


class Row(BaseModel):
    """One row of `features_1m`; on the first day of a symbol some values are null."""

    model_config = ConfigDict(extra="forbid")

    symbol: str
    bucket: datetime = Field(description="UTC start of the minute.")
    last_close: float | None
    vol: float | None
    log_return: float | None
    n_1d: int | None
    ma_vol_1d: float | None
    std_vol_1d: float | None
    volume_z: float | None
    vwap_gap: float | None
    parkinson_vol: float | None


COLUMNS = tuple(Row.model_fields)  # in the order of the service's queries


class LatestRow(Row):
    """A symbol's newest row, and its age."""

    age_seconds: float = Field(description="Seconds since the end of the minute.")
    stale: bool = Field(description="Whether it is older than FEATURE_PLATFORM_STALE_AFTER.")
