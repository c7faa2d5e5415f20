"""The newest row of each of some symbols: the input of a model's prediction."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from feature_platform.service.answers import answer_json, error_responses
from feature_platform.service.pool import QueryPool
from feature_platform.service.rows import COLUMNS, LatestRow, Symbol
from feature_platform.service.symbols import unknown_symbols

MOST_SYMBOLS = 100

_NAMES = (*COLUMNS, "age_seconds")


class LatestQuery(BaseModel):
    """The parameters of a request for the newest rows."""

    symbol: Annotated[
        list[Symbol],
        Query(min_length=1, max_length=MOST_SYMBOLS, description="May be repeated."),
    ]


class Latest(BaseModel):
    """The newest row of each symbol, in the order of the request."""

    model_config = ConfigDict(extra="forbid")

    rows: list[LatestRow]


def make_router(pool: QueryPool, stale_after: float) -> APIRouter:
    """Return the route of the newest rows.

    stale_after: seconds after which a row is stale.
    """
    router = APIRouter()

    @router.get(
        "/v1/features/latest", response_model=Latest, responses=error_responses(404, 422, 503)
    )
    async def latest(query: Annotated[LatestQuery, Query()]) -> Response:
        """Return the newest row of each symbol, its age, and whether it is stale."""
        symbols = list(dict.fromkeys(query.symbol))
        rows = {row[0]: row for row in await pool.fetch("service_latest", {"symbols": symbols})}
        missing = [symbol for symbol in symbols if symbol not in rows]
        if missing:
            raise await unknown_symbols(pool, missing)
        return answer_json(
            {
                "rows": [
                    {**dict(zip(_NAMES, row, strict=True)), "stale": row[-1] > stale_after}
                    for row in (rows[symbol] for symbol in symbols)
                ]
            }
        )

    return router
