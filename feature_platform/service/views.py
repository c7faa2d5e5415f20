"""The feature views: which there are, their newest rows, and their rows over time."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request
from psycopg import sql
from psycopg.rows import TupleRow
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from feature_platform.near_names import near_names
from feature_platform.service.answers import RejectedError, answer_json, error_responses
from feature_platform.service.history import PAGE, PART, HistoryQuery, answer_page, check_page
from feature_platform.service.latest import LatestQuery
from feature_platform.service.pool import QueryPool

_PATH = "/v1/views"

Name = Annotated[
    str,
    Path(pattern=r"^[a-z][a-z0-9_]{0,50}$", examples=["momentum_1m"], description="Of a view."),
]


class ViewColumn(BaseModel):
    """A column of a view, and the expression that it is computed by."""

    model_config = ConfigDict(extra="forbid")

    name: str
    expression: str


class View(BaseModel):
    """A feature view that can be read."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: int
    every_seconds: int = Field(description="Of a bucket.")
    description: str
    state: str
    columns: list[ViewColumn]


class Views(BaseModel):
    """All feature views, in the order of their names; features_1m is not one of them."""

    model_config = ConfigDict(extra="forbid")

    views: list[View]


class ViewRows(BaseModel):
    """The newest row of each symbol: symbol, bucket, the view's columns, age_seconds, stale."""

    rows: list[dict[str, str | float | bool | None]]


class ViewPage(BaseModel):
    """Rows in the order of time: symbol, bucket and the view's columns."""

    rows: list[dict[str, str | float | None]]
    next: str | None = Field(description="Address of the next page; null on the last.")


def make_router(pool: QueryPool, stale_after: float) -> APIRouter:
    """Return the routes of feature views.

    stale_after: seconds after which a row is stale, beside the width of its bucket.
    """
    router = APIRouter()

    @router.get(_PATH, response_model=Views, responses=error_responses(422, 503))
    async def views() -> Response:
        """Return every feature view that can be read, with its columns."""
        rows = await pool.fetch("service_views")
        return answer_json(
            {
                "views": [
                    {
                        **dict(zip(("name", "version", "every_seconds"), row, strict=False)),
                        "description": row[3],
                        "state": row[4],
                        "columns": [
                            {"name": name, "expression": source}
                            for name, source in zip(row[5], row[6], strict=True)
                        ],
                    }
                    for row in rows
                ]
            }
        )

    @router.get(
        f"{_PATH}/{{view}}/latest",
        response_model=ViewRows,
        responses=error_responses(404, 422, 503),
    )
    async def latest(view: Name, query: Annotated[LatestQuery, Query()]) -> Response:
        """Return the newest row of each symbol in a view, its age, and whether it is stale."""
        width, columns, identifiers = await _table(pool, view)
        symbols = list(dict.fromkeys(query.symbol))
        parameters = {"symbols": symbols, "width": width}
        found = await pool.fetch("service_view_latest", parameters, **identifiers)
        rows = {row[0]: row for row in found}
        _check_symbols(view, symbols, rows)
        names = ("symbol", "bucket", *columns, "age_seconds")
        late = stale_after + width.total_seconds() - 60
        return answer_json(
            {
                "rows": [
                    {**dict(zip(names, row, strict=True)), "stale": row[-1] > late}
                    for row in (rows[symbol] for symbol in symbols)
                ]
            }
        )

    @router.get(f"{_PATH}/{{view}}", response_model=ViewPage, responses=PAGE)
    async def history(
        view: Name, request: Request, query: Annotated[HistoryQuery, Query()]
    ) -> Response:
        """Return a view's rows of a symbol with `start <= bucket < end`, as JSON, CSV or Arrow.

        If the database goes away, the connection is cut before the page is complete.
        """
        form = check_page(request, query)
        width, columns, identifiers = await _table(pool, view)
        window = {"symbol": query.symbol, "start": query.start, "end": query.end}
        page = {**window, "rows": query.limit}
        found = await pool.fetch("service_view_next_start", page, **identifiers)
        next_start = found[0][0] if found else None
        window["end"] = next_start or query.end
        first = await pool.fetch("service_view_rows", {**window, "rows": PART}, **identifiers)
        if not first:
            any_row = {"symbols": [query.symbol], "width": width}
            newest = await pool.fetch("service_view_latest", any_row, **identifiers)
            _check_symbols(view, [query.symbol], {row[0]: row for row in newest})

        def after(bucket: datetime) -> Awaitable[list[TupleRow]]:
            part = {**window, "start": bucket + width, "rows": PART}
            return pool.fetch("service_view_rows", part, **identifiers)

        path = f"{_PATH}/{quote(view)}"
        all_columns = ("symbol", "bucket", *columns)
        return answer_page(form, path, query, next_start, all_columns, first, after)

    return router


async def _table(
    pool: QueryPool, view: str
) -> tuple[timedelta, list[str], dict[str, sql.Composable]]:
    """Return the bar width and the columns of a view, and the identifiers of its queries."""
    rows = await pool.fetch("service_views")
    found = {row[0]: row for row in rows}
    if view not in found:
        near = near_names(view, list(found))
        raise RejectedError(404, f"no view {view!r}{near}: /v1/views lists all")
    columns: list[str] = found[view][5]
    identifiers: dict[str, sql.Composable] = {
        "view": sql.Identifier("public", view),
        "columns": sql.SQL(", ").join(
            sql.SQL("{}::double precision").format(sql.Identifier("f", name)) for name in columns
        ),
    }
    return timedelta(seconds=found[view][2]), columns, identifiers


def _check_symbols(view: str, symbols: list[str], rows: dict[str, TupleRow]) -> None:
    missing = [symbol for symbol in symbols if symbol not in rows]
    if missing:
        raise RejectedError(404, f"no rows in {view} of {', '.join(map(repr, missing))}")
