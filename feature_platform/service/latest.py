"""The newest row of each of some symbols: the input of a model's prediction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from psycopg.rows import TupleRow
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from feature_platform.service.answers import answer_json, error_responses
from feature_platform.service.pool import QueryPool
from feature_platform.service.rows import COLUMNS, OF_THE_NEWEST, LatestRow, Symbol, buckets_of
from feature_platform.service.serve_log import ServeLog
from feature_platform.service.symbols import unknown_symbols

MOST_SYMBOLS = 100


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


def make_router(pool: QueryPool, log: ServeLog, stale_after: float) -> APIRouter:
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
        found = await pool.fetch("service_latest", {"symbols": symbols})
        rows = {row[0]: row for row in found}
        missing = [symbol for symbol in symbols if symbol not in rows]
        if missing:
            raise await unknown_symbols(pool, missing)
        log.add("features_1m", 0, timedelta(minutes=1), found)
        return answer_newest((rows[symbol] for symbol in symbols), COLUMNS, stale_after)

    return router


def answer_newest(rows: Iterable[TupleRow], columns: Sequence[str], stale_after: float) -> Response:
    """Return an answer of the newest rows, with their numbers and age.

    stale_after: the age in seconds after which a row is stale.
    """
    names = (*columns, *OF_THE_NEWEST)
    answers = [dict(zip(names, row, strict=True)) for row in rows]
    for answer in answers:
        answer["waiting"] = buckets_of(answer["waiting"])
        answer["stale"] = answer["age_seconds"] > stale_after
    return answer_json({"rows": answers})
