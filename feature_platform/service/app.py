"""The service as an ASGI application: its routes, its errors, and its key."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, get_origin

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from feature_platform import __version__
from feature_platform.near_names import near_names
from feature_platform.service import health, history, index, latest, metrics, symbols, views
from feature_platform.service.answers import (
    RETRY_AFTER,
    RejectedError,
    answer_error,
    error_responses,
)
from feature_platform.service.guard import OPEN_PATHS, Guard
from feature_platform.service.pool import DatabaseUnavailableError, QueryPool
from feature_platform.service.serve_log import ServeLog
from feature_platform.trouble_log import TroubleLog

_trouble = TroubleLog(logging.getLogger(__name__))


def create_app(
    pool: QueryPool, log: ServeLog, *, stale_after: float, key: str | None = None
) -> FastAPI:
    """Make the application; it opens the pool and the log when it starts.

    stale_after: seconds after which the newest row of a symbol is stale.
    key: the key that each request except those of health must send; None allows every client.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await pool.open()
        await log.open()
        yield
        await log.close()
        await pool.close()

    app = FastAPI(
        title="feature_platform",
        version=__version__,
        description="Exact one-minute features of symbols.",
        lifespan=lifespan,
        # Their pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # the index has this route, with the rules of all others
        # A wrong path is an error.
        redirect_slashes=False,
        responses=error_responses(413, 422),
        dependencies=[Depends(_check_parameters)],
    )
    locked: dict[str, Any] = {}
    if key is not None:
        locked = {"responses": error_responses(401, 429)}
        app.openapi = lambda: _with_lock(app)  # type: ignore[method-assign]
    measured = metrics.Metrics(pool, log)
    for router in (
        latest.make_router(pool, log, stale_after),
        history.make_router(pool),
        symbols.make_router(pool, stale_after),
        views.make_router(pool, log, stale_after),
        metrics.make_router(measured),
        index.make_router(),
    ):
        app.include_router(router, **locked)
    app.include_router(health.make_router(pool))
    app.add_middleware(Guard, key=key)
    app.add_middleware(measured.timed)
    app.add_exception_handler(RejectedError, _reject)
    app.add_exception_handler(RequestValidationError, _reject_parameters)
    app.add_exception_handler(HTTPException, _reject_route)
    app.add_exception_handler(DatabaseUnavailableError, _reject_for_now)
    return app


def _with_lock(app: FastAPI) -> dict[str, Any]:
    """Describe the application, with the paths that need a key."""
    described = FastAPI.openapi(app)
    described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in described["paths"].items():
        for method in methods.values():
            method["security"] = [] if path in OPEN_PATHS else [{"key": []}]
    return described


async def _reject(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RejectedError)
    return answer_error(error.status, error.detail, RETRY_AFTER if error.status == 503 else None)


async def _check_parameters(request: Request) -> None:
    """Raise RejectedError for a parameter that the route does not have, or has only once.

    FastAPI calls it before it reads the parameters: a misspelt parameter often is a missing one,
    and of a repeated one FastAPI reads the last.
    """
    known = _parameters(request.scope["route"])
    names = list(known)
    for name in request.query_params:
        if name not in known:
            rest = f"; the parameters are {', '.join(names)}" if known else ": this path has none"
            raise RejectedError(422, f"no parameter {name!r}{near_names(name, names)}{rest}")
        if not known[name] and len(request.query_params.getlist(name)) > 1:
            raise RejectedError(422, f"{name}: the parameter is given more than once")


async def _reject_parameters(_request: Request, error: Exception) -> Response:
    """Name the first invalid parameter, without its value."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return answer_error(422, f"{where}: {first['msg'].removeprefix('Value error, ')}")


def _parameters(route: APIRoute) -> dict[str, bool]:
    """Return the names of a route's query parameters, and whether each may be repeated."""
    return {
        name: get_origin(info.annotation) is list
        for field in route.dependant.query_params
        for name, info in getattr(
            field.field_info.annotation, "model_fields", {field.name: field.field_info}
        ).items()
    }


async def _reject_route(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = None if error.headers is None else dict(error.headers)
    detail = "no such path: / lists the requests" if error.status_code == 404 else error.detail
    return answer_error(error.status_code, detail, headers)


async def _reject_for_now(_request: Request, error: Exception) -> Response:
    _trouble.warn(error.__cause__ or error, str(error))
    return answer_error(503, str(error), RETRY_AFTER)
