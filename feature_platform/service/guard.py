"""Who may ask, and how much at once: decided before anything else is done for a request."""

from __future__ import annotations

import secrets

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from feature_platform.service.answers import answer_error

# The longest request that makes sense: a hundred symbols, every letter of them percent-encoded.
MOST_BYTES = 512 * 1024

# What watches a process has no key.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})


class Guard:
    """Refuse requests without the key, and requests with a body, which have no use for one.

    key: what must be sent as `Authorization: Bearer KEY`; None lets everyone in.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = b""
        has_body = False
        for name, value in scope["headers"]:
            if name == b"authorization":
                sent = value
            elif name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                has_body = True
        if self._key is not None and scope["path"] not in OPEN_PATHS and not self._knows(sent):
            refusal = answer_error(
                401, "send the key as Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            )
        elif has_body:
            refusal = answer_error(413, "a body has no use here", {"Connection": "close"})
        else:
            await self._app(scope, receive, send)
            return
        await refusal(scope, receive, send)

    def _knows(self, sent: bytes) -> bool:
        assert self._key is not None
        scheme, _, key = sent.partition(b" ")
        # It takes the same time whatever part of it is right.
        return secrets.compare_digest(key.strip(), self._key) and scheme.lower() == b"bearer"


class BoundedProtocol(HttpToolsProtocol):
    """Speak HTTP, and hang up on who sends without an end."""

    _pending = 0  # bytes since the last request that was complete

    def data_received(self, data: bytes) -> None:
        """Take what was sent."""
        self._pending += len(data)
        if self._pending > MOST_BYTES:
            if not self.transport.is_closing():
                self.send_400_response("The request is too large.")
            return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Begin to answer a request."""
        self._pending = 0
        super().on_headers_complete()
