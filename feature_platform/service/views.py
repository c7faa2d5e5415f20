"""The feature views: which there are, their newest rows, and their rows over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated
from urllib.parse import quote

import pyarrow as pa
from fastapi import APIRouter, Path, Query, Request
from psycopg import sql
from psycopg.rows import TupleRow
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from feature_platform.near_names import near_names
from feature_platform.service.answers import RejectedError, answer_json, error_responses
from feature_platform.service.formats import schema_of
from feature_platform.service.history import (
    PAGE,
    HistoryQuery,
    PageFields,
    Source,
    answer_page,
    as_text,
    check_page,
)
from feature_platform.service.latest import LatestQuery, answer_newest
from feature_platform.service.pool import QueryPool
from feature_platform.service.rows import Buckets
from feature_platform.service.serve_log import ServeLog

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
    """The newest row of each symbol: as of features_1m, with the columns of the view."""

    rows: list[dict[str, str | float | bool | list[Buckets] | None]]


class ViewQuery(HistoryQuery):
    """The parameters of a request for a view's rows over time."""

    version: Annotated[
        int | None,
        Field(ge=1, le=2**31 - 1, description="The version that must be served; by default any."),
    ] = None


class ViewPage(PageFields):
    """Rows in the order of time: symbol, bucket, the view's columns and refresh_no."""

    rows: list[dict[str, str | float | None]]


@dataclass(frozen=True)
class _Version:
    """The version of a view that is served; built_at: since when it is complete."""

    id: int
    name: str
    version: int
    every_seconds: int
    description: str
    state: str
    columns: list[str]
    sources: list[str]
    built_at: datetime | None

    @property
    def width(self) -> timedelta:
        return timedelta(seconds=self.every_seconds)

    @property
    def row(self) -> tuple[str, ...]:
        """The columns of a row."""
        return ("symbol", "bucket", *self.columns, "refresh_no")

    @property
    def identifiers(self) -> dict[str, sql.Composable]:
        """The identifiers of its queries."""
        return {
            "view": sql.Identifier("public", self.name),
            "versions": sql.Identifier("feature_views", f"v{self.id}_versions"),
            "columns": sql.SQL(", ").join(
                sql.SQL("{}::double precision").format(sql.Identifier("f", name))
                for name in self.columns
            ),
        }


def make_router(pool: QueryPool, log: ServeLog, stale_after: float) -> APIRouter:
    """Return the routes of feature views.

    stale_after: seconds after which a row is stale, beside the width of its bucket.
    """
    router = APIRouter()

    @router.get(_PATH, response_model=Views, responses=error_responses(422, 503))
    async def views() -> Response:
        """Return every feature view that can be read, with its columns."""
        return answer_json(
            {
                "views": [
                    {
                        "name": one.name,
                        "version": one.version,
                        "every_seconds": one.every_seconds,
                        "description": one.description,
                        "state": one.state,
                        "columns": [
                            {"name": name, "expression": source}
                            for name, source in zip(one.columns, one.sources, strict=True)
                        ],
                    }
                    for one in await _versions(pool)
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
        version = await _version(pool, view)
        symbols = list(dict.fromkeys(query.symbol))
        found = await _newest(pool, version, symbols)
        rows = {row[0]: row for row in found}
        _check_symbols(view, symbols, rows)
        log.add(view, version.version, version.width, found)
        late = stale_after + version.every_seconds - 60
        return answer_newest((rows[symbol] for symbol in symbols), version.row, late)

    @router.get(f"{_PATH}/{{view}}", response_model=ViewPage, responses=PAGE)
    async def history(
        view: Name, request: Request, query: Annotated[ViewQuery, Query()]
    ) -> Response:
        """Return a view's rows of a symbol with `start <= bucket < end`, as JSON, CSV or Arrow.

        All pages show the same refreshes. If the database fails meanwhile, the connection is
        closed before the page is complete.
        """
        form = check_page(request, query)
        version = await _version(pool, view)
        _check_version(version, query)

        async def check_symbol(symbol: str) -> None:
            newest = await _newest(pool, version, [symbol])
            _check_symbols(view, [symbol], {row[0]: row for row in newest})

        source = Source(
            path=f"{_PATH}/{quote(view)}",
            schema=schema_of(version.row, refresh_no=pa.int64()),
            width=version.width,
            page="service_view_page",
            rows="service_view_rows",
            check_symbol=check_symbol,
            parameters={"id": version.id},
            identifiers=version.identifiers,
            # The numbers of another version have nothing in common with these.
            address={"version": version.version},
        )
        return await answer_page(pool, source, form, query)

    return router


async def _versions(pool: QueryPool) -> list[_Version]:
    return [_Version(*row) for row in await pool.fetch("service_views")]


async def _version(pool: QueryPool, view: str) -> _Version:
    """Return the version of a view that is served; raise RejectedError if there is none."""
    found = {one.name: one for one in await _versions(pool)}
    if view not in found:
        near = near_names(view, list(found))
        raise RejectedError(404, f"no view {view!r}{near}: /v1/views lists all")
    return found[view]


def _check_version(version: _Version, query: ViewQuery) -> None:
    """Raise RejectedError for another version, and for a time at which it was not complete."""
    if query.version not in (None, version.version):
        raise RejectedError(
            400,
            f"version: {version.name} has version {version.version} now, not {query.version}:"
            " read from the first page",
        )
    if query.as_of is None:
        return
    if version.built_at is None:
        raise RejectedError(400, f"as_of: {version.name} is not complete yet")
    if query.as_of < version.built_at:
        raise RejectedError(
            400,
            f"as_of: {as_text(query.as_of)} is too early: version {version.version} of"
            f" {version.name} is complete since {as_text(version.built_at)}",
        )


async def _newest(pool: QueryPool, version: _Version, symbols: list[str]) -> list[TupleRow]:
    parameters = {"symbols": symbols, "width": version.width, "id": version.id}
    return await pool.fetch("service_view_latest", parameters, **version.identifiers)


def _check_symbols(view: str, symbols: list[str], rows: Mapping[str, TupleRow]) -> None:
    missing = [symbol for symbol in symbols if symbol not in rows]
    if missing:
        raise RejectedError(404, f"no rows in {view} of {', '.join(map(repr, missing))}")
