"""The guard before the routes: it checks the key and rejects bodies."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from feature_platform.service.answers import answer_error
from feature_platform.service.connections import peer_of

# A monitor of the process has no key.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})


# The number of wrong keys of a peer at once, and the seconds until it may send one more.
MOST_GUESSES = 10
GUESS_SECONDS = 6.0
_MOST_PEERS = 10_000  # that are remembered

_log = logging.getLogger(__name__)


class Guesses:
    """Count the wrong keys of each peer.

    clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The time at which all guesses of a peer are forgotten; the earliest first.
        self._forgotten_at: dict[str, float] = {}

    def wait(self, peer: str) -> float:
        """Return after how many seconds a peer may send a key again, 0 for now."""
        waiting = self._forgotten_at.get(peer, 0.0) - self._clock()
        return max(0.0, waiting - (MOST_GUESSES - 1) * GUESS_SECONDS)

    def add(self, peer: str) -> None:
        """Count one wrong key."""
        now = self._clock()
        self._forgotten_at[peer] = max(self._forgotten_at.pop(peer, now), now) + GUESS_SECONDS
        if len(self._forgotten_at) > _MOST_PEERS:
            del self._forgotten_at[next(iter(self._forgotten_at))]


class Guard:
    """Reject requests without the key, and requests with a body, which no route uses.

    A peer that sent many wrong keys has to wait before its next key is checked, right or wrong.

    key: the key of `Authorization: Bearer KEY`; None lets every client in.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = None if key is None else key.encode()
        self._guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
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
        rejection: Response | None = None
        if self._key is not None and scope["path"] not in OPEN_PATHS:
            rejection = self._check_key(sent, peer_of(scope["client"]))
        if rejection is None and has_body:
            rejection = answer_error(413, "a request must not have a body", {"Connection": "close"})
        if rejection is None:
            await self._app(scope, receive, send)
            return
        await rejection(scope, receive, send)

    def _check_key(self, sent: bytes, peer: str) -> Response | None:
        """Return an error for a key that is missing or wrong, or of a peer that has to wait."""
        if sent and (wait := self._guesses.wait(peer)):
            return answer_error(
                429, "too many wrong keys: wait", {"Retry-After": str(math.ceil(wait))}
            )
        if self._knows(sent):
            return None
        if sent:
            self._guesses.add(peer)
            if self._guesses.wait(peer):
                _log.warning("many wrong keys from %s: it has to wait", peer)
        return answer_error(
            401, "send the key as Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
        )

    def _knows(self, sent: bytes) -> bool:
        assert self._key is not None
        scheme, _, key = sent.partition(b" ")
        # The time does not depend on how much of the key is right.
        return secrets.compare_digest(key.strip(), self._key) and scheme.lower() == b"bearer"
