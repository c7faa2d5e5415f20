"""Health of the service: whether it is alive, and whether it can answer."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from feature_platform.schema import version_fault
from feature_platform.service.answers import RejectedError, answer_json, error_responses
from feature_platform.service.pool import QueryPool


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The database answers, and has the schema that this code needs."""

    status: Literal["ready"] = "ready"


def make_router(pool: QueryPool) -> APIRouter:
    """Return the routes of health."""
    router = APIRouter()

    @router.get("/healthz", response_model=Alive)
    async def healthz() -> Response:
        """Check that the process is alive, without the database."""
        return answer_json({"status": "alive"})

    @router.get("/readyz", response_model=Ready, responses=error_responses(503))
    async def readyz() -> Response:
        """Check that the database answers, and has the schema that this code needs."""
        ((version, hash_),) = await pool.fetch("schema_version")
        fault = "is not set up" if version is None else version_fault(version, hash_)
        if fault is not None:
            raise RejectedError(503, f"the database {fault}")
        return answer_json({"status": "ready"})

    return router
