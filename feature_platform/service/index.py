"""The index at `/`: the requests that there are; and their description for programs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from feature_platform import __version__
from feature_platform.service.answers import answer_json


class Index(BaseModel):
    """The requests of the service, each with its purpose."""

    service: str
    requests: dict[str, str]


def make_router() -> APIRouter:
    """Return the route of the index."""
    router = APIRouter()

    @router.get("/", response_model=Index)
    async def index(request: Request) -> Response:
        """List the requests that there are."""
        requests = {"/openapi.json": "Describe all of this for programs."}
        for path, methods in request.app.openapi()["paths"].items():
            requests[path] = methods["get"]["description"].partition("\n")[0]
        return answer_json(
            {
                "service": f"feature_platform {__version__}",
                "requests": dict(sorted(requests.items())),
            }
        )

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        """Describe all requests for programs."""
        return answer_json(request.app.openapi())

    return router
