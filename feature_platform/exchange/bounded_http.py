"""HTTP requests with a limit of size, a total deadline, and an end at a stop event."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import ccxt
import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

MIB = 2**20
_CHUNK = 2**16
_MOST_REDIRECTS = 5


class Limit(NamedTuple):
    """The limits of an answer: bytes after decompression, and seconds from the request on."""

    size: int
    seconds: float


# A page of 1,000 bars has 0.2 MiB; 8 MiB leave room for every exchange's page.
BARS = Limit(8 * MIB, 30.0)
# The longest lists of symbols have about 15 MiB.
LISTS = Limit(32 * MIB, 60.0)


class Interrupted(Exception):
    """A stop event ended a request."""


@dataclass(frozen=True)
class _Request:
    """One request: the future of its answer, its limit, and the sockets that it waits on."""

    answer: Future[requests.Response]
    limit: Limit
    sockets: list[socket.socket]

    def abandon(self, reason: Exception) -> None:
        """Fail the request, and end its reads."""
        with suppress(InvalidStateError):
            self.answer.set_exception(reason)
        for one in self.sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class BoundedSession(requests.Session):
    """Send requests for one thread; another thread may interrupt them.

    requests has a timeout for each read, but no total one and no limit of size; it cannot be
    interrupted in a read, a TLS handshake or a DNS lookup. So each request runs in a thread of its
    own, which is abandoned at the deadline or the stop: closing its sockets ends it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.max_redirects = _MOST_REDIRECTS
        self._limit = BARS
        self._interrupted = False
        self._lock = threading.Lock()
        self._current: _Request | None = None
        for scheme in ("http://", "https://"):
            self.mount(scheme, _BoundedAdapter())

    @contextmanager
    def limited(self, limit: Limit) -> Iterator[None]:
        """Use other limits than `BARS` in the body."""
        before, self._limit = self._limit, limit
        try:
            yield
        finally:
            self._limit = before

    def interrupt(self) -> None:
        """End the current request, and fail all later ones; from any thread."""
        with self._lock:
            self._interrupted = True
            current = self._current
        if current is not None:
            current.abandon(Interrupted())

    def request(self, *arguments: Any, **options: Any) -> requests.Response:
        """Send a request, with the parameters of `requests.request`.

        Raises Interrupted at a stop, requests.Timeout at the deadline, ccxt.BadResponse for an
        answer that is too large.
        """
        request = _Request(Future(), self._limit, [])
        with self._lock:
            if self._interrupted:
                raise Interrupted
            self._current = request
        threading.Thread(
            target=self._send, args=(request, arguments, options), name="request", daemon=True
        ).start()
        try:
            return request.answer.result(request.limit.seconds)
        except TimeoutError:
            late = requests.Timeout(f"no complete answer within {request.limit.seconds:.0f} s")
            request.abandon(late)
            raise late from None

    def _send(self, request: _Request, arguments: Any, options: Any) -> None:
        _this_thread.request = request
        try:
            response = super().request(*arguments, **options)
        except Exception as error:  # noqa: BLE001  # raised in the caller's thread
            with suppress(InvalidStateError):
                request.answer.set_exception(error)
        else:
            with suppress(InvalidStateError):
                request.answer.set_result(response)


class _ThisThread(threading.local):
    request: _Request | None = None


_this_thread = _ThisThread()


class _BoundedAdapter(HTTPAdapter):
    """Read answers up to the size limit of the thread's request."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        pools = {"http": _HttpPool, "https": _HttpsPool}
        self.poolmanager.pool_classes_by_scheme = pools

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, **options: Any
    ) -> requests.Response:
        response = super().send(request, **{**options, "stream": True})
        running = _this_thread.request
        assert running is not None, "only BoundedSession uses this adapter"
        content = bytearray()
        for chunk in response.iter_content(_CHUNK):
            content += chunk
            if running.answer.done():
                response.close()
                break
            if len(content) > running.limit.size:
                response.close()
                raise ccxt.BadResponse(
                    f"an answer of more than {running.limit.size // MIB} MiB to {request.url}"
                )
        response._content = bytes(content)
        return response


class _HttpConnection(HTTPConnection):
    def getresponse(self) -> Any:
        _register(self.sock)
        return super().getresponse()


class _HttpsConnection(HTTPSConnection):
    def getresponse(self) -> Any:
        _register(self.sock)
        return super().getresponse()


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def _register(one: socket.socket | None) -> None:
    """Add the socket to the thread's request; shut it down if the request was abandoned already."""
    running = _this_thread.request
    if running is None or one is None:
        return
    running.sockets.append(one)
    if running.answer.done():
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
