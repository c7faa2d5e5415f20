"""Whether the service is alive, and whether it can do its work."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from feature_platform.schema import version_fault
from feature_platform.service.answers import RefusedError, answer_json, refusals
from feature_platform.service.database import Database


class Alive(BaseModel):
    """Say that the process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Say that the database answers, and has the schema that this code needs."""

    status: Literal["ready"] = "ready"


def make_router(database: Database) -> APIRouter:
    """Return the routes of health."""
    router = APIRouter()

    @router.get("/healthz", response_model=Alive)
    async def healthz() -> Response:
        """Tell that the process is alive; asks nobody else."""
        return answer_json({"status": "alive"})

    @router.get("/readyz", response_model=Ready, responses=refusals(503))
    async def readyz() -> Response:
        """Tell whether the database answers, and has the schema that this code needs."""
        ((version, hash_),) = await database.fetch("schema_version")
        fault = "is not set up" if version is None else version_fault(version, hash_)
        if fault is not None:
            raise RefusedError(503, f"the database {fault}")
        return answer_json({"status": "ready"})

    return router
