"""The newest row of each of some symbols: what a model asks for before it answers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from feature_platform.service.answers import answer_json, refusals
from feature_platform.service.database import Database
from feature_platform.service.rows import COLUMNS, LatestRow, Symbol
from feature_platform.service.symbols import unknown_symbols

MOST_SYMBOLS = 100

_NAMES = (*COLUMNS, "age_seconds")


class LatestQuery(BaseModel):
    """Whose newest rows to give."""

    model_config = ConfigDict(extra="forbid")

    symbol: Annotated[
        list[Symbol],
        Query(min_length=1, max_length=MOST_SYMBOLS, description="May be repeated."),
    ]


class Latest(BaseModel):
    """The newest row of each symbol, in the order in which they were asked for."""

    model_config = ConfigDict(extra="forbid")

    rows: list[LatestRow]


def make_router(database: Database, stale_after: float) -> APIRouter:
    """Return the route of the newest rows.

    stale_after: seconds from which on a row is called stale.
    """
    router = APIRouter()

    @router.get("/v1/features/latest", response_model=Latest, responses=refusals(404, 422, 503))
    async def latest(query: Annotated[LatestQuery, Query()]) -> Response:
        """Give the newest row of each symbol, how old it is, and whether it is stale."""
        symbols = list(dict.fromkeys(query.symbol))
        rows = {row[0]: row for row in await database.fetch("service_latest", {"symbols": symbols})}
        missing = [symbol for symbol in symbols if symbol not in rows]
        if missing:
            raise await unknown_symbols(database, missing)
        return answer_json(
            {
                "rows": [
                    {**dict(zip(_NAMES, row, strict=True)), "stale": row[-1] > stale_after}
                    for row in (rows[symbol] for symbol in symbols)
                ]
            }
        )

    return router
