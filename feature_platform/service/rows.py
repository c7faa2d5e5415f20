"""Feature rows and symbols in the service's requests and answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from psycopg.types.multirange import Multirange
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
    refresh_no: int = Field(description="The refresh that gave the row its values.")


COLUMNS = tuple(Row.model_fields)  # in the order of the service's queries


class Buckets(BaseModel):
    """A range of buckets."""

    model_config = ConfigDict(extra="forbid")

    start: datetime
    end: datetime | None = Field(description="The first bucket after it; null: no end.")


class LatestRow(Row):
    """A symbol's newest row, its age, and what the reader knew of the symbol."""

    symbol_no: int = Field(description="The symbol's last refresh.")
    waiting: list[Buckets] = Field(
        description="Buckets from this one on whose change a refresh has begun to process and not"
        " finished; usually none. Changes that no refresh has begun to process are not in it."
    )
    waiting_no: int | None = Field(
        description="The rows of these buckets are as of this refresh; null if there are none."
    )
    age_seconds: float = Field(description="Seconds since the end of the minute.")
    stale: bool = Field(description="Whether it is older than FEATURE_PLATFORM_STALE_AFTER.")


# The service's queries give these values after the columns of a newest row, in this order.
OF_THE_NEWEST = ("symbol_no", "waiting", "waiting_no", "age_seconds")


def buckets_of(waiting: Multirange[datetime] | None) -> list[dict[str, Any]]:
    """Return the ranges of a multirange, each as an instance of `Buckets`."""
    return [] if waiting is None else [{"start": r.lower, "end": r.upper} for r in waiting]
