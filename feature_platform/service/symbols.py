"""Which symbols there are, and from when to when they have rows."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from feature_platform.service.answers import answer_json, refusals
from feature_platform.service.database import Database

_NAMES = ("symbol", "first_bucket", "last_bucket", "age_seconds")


class SymbolRange(BaseModel):
    """A symbol, and from when to when it has rows."""

    model_config = ConfigDict(extra="forbid")

    symbol: str
    first_bucket: datetime
    last_bucket: datetime
    age_seconds: float = Field(description="Since the last minute ended.")
    stale: bool = Field(description="Whether it is older than FEATURE_PLATFORM_STALE_AFTER.")


class Symbols(BaseModel):
    """All symbols that have rows, in order."""

    model_config = ConfigDict(extra="forbid")

    symbols: list[SymbolRange]


def make_router(database: Database, stale_after: float) -> APIRouter:
    """Return the route of symbols.

    stale_after: seconds from which on a row is called stale.
    """
    router = APIRouter()

    @router.get("/v1/symbols", response_model=Symbols, responses=refusals(422, 503))
    async def symbols() -> Response:
        """Give every symbol that has rows."""
        rows = await database.fetch("service_symbols")
        return answer_json(
            {
                "symbols": [
                    {**dict(zip(_NAMES, row, strict=True)), "stale": row[-1] > stale_after}
                    for row in rows
                ]
            }
        )

    return router
