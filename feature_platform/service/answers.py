"""Answers: JSON as bytes, and errors of one form."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, Field
from starlette.responses import Response

RETRY_AFTER = {"Retry-After": "1"}


class Error(BaseModel):
    """An error and its remedy."""

    detail: str = Field(description="One line.")


class RejectedError(Exception):
    """The rejection of a request: an HTTP status and the reason in one line."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def dump_json(content: Any) -> bytes:
    """Return JSON: numbers exact, NaN and infinity as null, times in UTC."""
    return orjson.dumps(content, option=orjson.OPT_UTC_Z)


def answer_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer in JSON, with an HTTP status."""
    return Response(dump_json(content), status, headers, "application/json")


def answer_error(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return an answer with the status and the text of an error."""
    return answer_json({"detail": detail}, status, headers)


_MEANINGS = {
    400: "Each value is valid, but not their combination.",
    401: "The key is missing or wrong.",
    404: "No such symbol, or no such view: it has no rows.",
    406: "The service has none of the accepted formats.",
    413: "The request has a body.",
    422: "A parameter is missing, unknown or invalid.",
    429: "Too many wrong keys from this address; send the next one after Retry-After.",
    503: "The database does not answer; try again after Retry-After.",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe errors for OpenAPI."""
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": Error, "description": _MEANINGS[status]} for status in statuses
    }
    for status in described.keys() & {429, 503}:
        described[status]["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
        }
    return described
