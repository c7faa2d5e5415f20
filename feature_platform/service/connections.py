"""Connections of the model service: limits of their time, their bytes and their number.

uvicorn limits neither the time that a client takes to send a request nor the time that it takes to
read an answer, and counts connections but not by peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from feature_platform.service.answers import RETRY_AFTER, dump_json

# The longest useful request: a hundred symbols, each letter percent-encoded.
MOST_BYTES = 512 * 1024

# Below 1,024, the usual limit of open files, with room for connections to the database and for
# those that are being closed.
MOST_CONNECTIONS = 800
# The database answers eight queries at once, and 80 more wait: more requests of one peer at once
# would fail anyway.
MOST_OF_A_PEER = 200

HEADER_SECONDS = 5.0  # from a connection, or from the first byte of a request, to its last header
READ_SECONDS = 30.0  # without any progress of a client that has an answer to read


def peer_of(client: Any) -> str:
    """Return the peer that a limit counts: an IPv4 address, or an IPv6 network of 64 bits.

    client: of an ASGI scope, its host and port; None of a connection without an address.
    """
    if client is None:
        return ""
    try:
        address = ip_address(client[0])
    except ValueError:  # the text of a proxy's header
        return str(client[0])[:100]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, 64), strict=False))
    return str(address)


class Limits:
    """Bound the connections of one server, in total and by peer.

    With too many connections, the one that has waited longest for a request is closed for the new
    one; a new one is rejected only if all are being answered. So a client that sends its request
    at once is served, however many idle connections other clients have.

    proxies: peers with many clients, which only the total bounds.
    """

    def __init__(
        self,
        proxies: Iterable[str] = (),
        *,
        total: int = MOST_CONNECTIONS,
        of_a_peer: int = MOST_OF_A_PEER,
        header_seconds: float = HEADER_SECONDS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self.header_seconds = header_seconds
        self.read_seconds = read_seconds
        self._proxies = frozenset(proxies)
        self._total = total
        self._of_a_peer = of_a_peer
        self._open: dict[BoundedProtocol, str] = {}
        # Connections that wait for a request, the longest first; all, and by peer.
        self._waiting: dict[BoundedProtocol, None] = {}
        self._waiting_of: dict[str, dict[BoundedProtocol, None]] = {}
        self._count_of: dict[str, int] = {}

    def admit(self, connection: BoundedProtocol, client: Any) -> bool:
        """Count a new connection, which waits for a request; return whether there is room."""
        peer = peer_of(client)
        full = peer not in self._proxies and self._count_of.get(peer, 0) >= self._of_a_peer
        if full and not self._close_one(self._waiting_of[peer]):
            return False
        if len(self._open) >= self._total and not self._close_one(self._waiting):
            return False
        self._open[connection] = peer
        self._count_of[peer] = self._count_of.get(peer, 0) + 1
        self._waiting_of.setdefault(peer, {})
        self.wait(connection)
        return True

    def wait(self, connection: BoundedProtocol) -> None:
        """Record that a connection waits for a request from now on."""
        peer = self._open.get(connection)
        if peer is not None:
            self._waiting[connection] = self._waiting_of[peer][connection] = None

    def answer(self, connection: BoundedProtocol) -> None:
        """Record that a connection has sent a request."""
        peer = self._open.get(connection)
        if peer is not None:
            self._waiting.pop(connection, None)
            self._waiting_of[peer].pop(connection, None)

    def release(self, connection: BoundedProtocol) -> None:
        """Stop counting a connection, which need not have been admitted."""
        self.answer(connection)
        peer = self._open.pop(connection, None)
        if peer is None:
            return
        self._count_of[peer] -= 1
        if not self._count_of[peer]:
            del self._count_of[peer], self._waiting_of[peer]

    def _close_one(self, waiting: dict[BoundedProtocol, None]) -> bool:
        oldest = next(iter(waiting), None)
        if oldest is None:
            return False
        self.release(oldest)
        oldest.transport.abort()
        return True


class LimitedConfig(Config):
    """uvicorn's configuration, and the limits that all connections of the server share."""

    def __init__(self, app: ASGIApp, limits: Limits, **options: Any) -> None:
        super().__init__(app, http=BoundedProtocol, **options)
        self.limits = limits


class BoundedProtocol(HttpToolsProtocol):
    """One connection, which is closed if its client is too slow or sends too much."""

    config: LimitedConfig
    _pending = 0  # bytes since the last request that was complete
    _header_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, if there is room for one more connection."""
        super().connection_made(transport)
        if self.config.limits.admit(self, self.client):
            self._expect_headers()
        else:
            self._reject(503, "there are too many connections", RETRY_AFTER)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.config.limits.release(self)
        self._stop_header_timer()
        self._stop_read_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle a part of a request."""
        self._pending += len(data)
        if self._pending > MOST_BYTES:
            if not self.transport.is_closing():
                self.send_400_response("The request is too large.")
            return
        super().data_received(data)
        if self._pending and self._header_timer is None and not self.transport.is_closing():
            self._expect_headers()

    def on_headers_complete(self) -> None:
        """Begin to answer a request."""
        self._pending = 0
        self._stop_header_timer()
        self._stop_read_timer()
        self.config.limits.answer(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, and for the client to read the answer."""
        super().on_response_complete()
        if not self.pipeline:
            self.config.limits.wait(self)
        if self.transport.get_write_buffer_size():
            self._expect_reading()

    def pause_writing(self) -> None:
        """Wait a limited time for the client to read."""
        self._expect_reading()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on with the answer."""
        self._stop_read_timer()
        super().resume_writing()

    def _expect_reading(self) -> None:
        """Abort the connection unless its client continues to read."""
        self._stop_read_timer()
        self._read_timer = self.loop.call_later(self.config.limits.read_seconds, self._unread)

    def _expect_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.config.limits.header_seconds, self._late)

    def _late(self) -> None:
        """Close a connection whose request did not come in time."""
        self._header_timer = None
        if self._pending:
            self._reject(408, "the request did not come in time")
        else:
            self.transport.close()

    def _unread(self) -> None:
        self._read_timer = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _reject(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        """Send an error before there is a request, and close the connection."""
        body = dump_json({"detail": detail})
        lines = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **(headers or {}),
        }
        head = "".join(f"{name.lower()}: {value}\r\n" for name, value in lines.items())
        self.transport.write(STATUS_LINE[status] + head.encode() + b"\r\n" + body)
        self.transport.close()

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
