"""The symbols with rows, and the range of their rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from itertools import zip_longest

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from feature_platform.near_names import near_names
from feature_platform.service.answers import RejectedError, answer_json, error_responses
from feature_platform.service.pool import QueryPool

_MOST_COMPARED = 3  # unknown symbols of a request

_NAMES = ("symbol", "first_bucket", "last_bucket", "age_seconds")


class SymbolRange(BaseModel):
    """A symbol, and the range of its rows."""

    model_config = ConfigDict(extra="forbid")

    symbol: str
    first_bucket: datetime
    last_bucket: datetime
    age_seconds: float = Field(description="Seconds since the end of the last minute.")
    stale: bool = Field(description="Whether it is older than FEATURE_PLATFORM_STALE_AFTER.")


class Symbols(BaseModel):
    """All symbols that have rows, in order."""

    model_config = ConfigDict(extra="forbid")

    symbols: list[SymbolRange]


async def unknown_symbols(pool: QueryPool, unknown: Sequence[str]) -> RejectedError:
    """Return the error for symbols without rows; it names the nearest of those that have some."""
    known = [row[0] for row in await pool.fetch("service_known_symbols")]
    # In a thread, because the comparison of many names would delay other answers.
    near = await asyncio.to_thread(
        lambda: [near_names(name, known) for name in unknown[:_MOST_COMPARED]]
    )
    names = (f"{name!r}{hint}" for name, hint in zip_longest(unknown, near, fillvalue=""))
    return RejectedError(404, f"no features of {', '.join(names)}")


def make_router(pool: QueryPool, stale_after: float) -> APIRouter:
    """Return the route of symbols.

    stale_after: seconds after which a row is stale.
    """
    router = APIRouter()

    @router.get("/v1/symbols", response_model=Symbols, responses=error_responses(422, 503))
    async def symbols() -> Response:
        """Return every symbol that has rows."""
        rows = await pool.fetch("service_symbols")
        return answer_json(
            {
                "symbols": [
                    {**dict(zip(_NAMES, row, strict=True)), "stale": row[-1] > stale_after}
                    for row in rows
                ]
            }
        )

    return router
