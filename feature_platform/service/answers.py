"""What answers have in common: JSON as bytes, and errors of one form."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, Field
from starlette.responses import Response

RETRY_AFTER = {"Retry-After": "1"}


class Error(BaseModel):
    """Say what is wrong, and what to do about it."""

    detail: str = Field(description="One line.")


class RefusedError(Exception):
    """Refuse a request, with an HTTP status and one line that says why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def dump_json(content: Any) -> bytes:
    """Write JSON: numbers exact, what is no number (NaN, infinity) as null, times in UTC."""
    return orjson.dumps(content, option=orjson.OPT_UTC_Z)


def answer_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON."""
    return Response(dump_json(content), status, headers, "application/json")


def answer_error(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Answer with an error."""
    return answer_json({"detail": detail}, status, headers)


_MEANINGS = {
    400: "Each value is fine, but not all of them together.",
    401: "The key is missing or wrong.",
    404: "No such symbol: it has no feature rows.",
    406: "None of the formats that are accepted is spoken here.",
    413: "The request has a body.",
    422: "A parameter is missing, unknown, or not what it should be.",
    429: "Too many wrong keys from this address; send the next one after Retry-After.",
    503: "The database does not answer; ask again after Retry-After.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe errors for OpenAPI."""
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": Error, "description": _MEANINGS[status]} for status in statuses
    }
    for status in described.keys() & {429, 503}:
        described[status]["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
        }
    return described
