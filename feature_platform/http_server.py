"""An HTTP server at a URL: in this process until a signal, or in a thread beside a test."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

import uvicorn

from feature_platform.errors import UserError

_log = logging.getLogger(__name__)


class StoppableServer(uvicorn.Server):
    """A uvicorn server without signal handlers of its own."""

    def stop(self) -> None:
        """Stop the server; may be called from any thread or a signal handler."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals of the process as they are."""
        yield


class HttpServer:
    """Run a uvicorn server on a listening socket, at `url`.

    As a context manager it serves from a thread of its own, named `name`.

    new_loop: make the event loop; by default asyncio's own.
    """

    def __init__(
        self,
        listener: socket.socket,
        server: StoppableServer,
        *,
        name: str,
        new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        self.url = url_of(listener)
        self._socket = listener
        self._server = server
        self._new_loop = new_loop
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; open answers are finished first."""

        def stop(number: int, _frame: FrameType | None) -> None:
            _log.info("stopping signal=%s", signal.Signals(number).name)
            self._server.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        self._serve()
        _log.info("stopped")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.stop()
        self._thread.join()

    def close(self) -> None:
        """Close the socket of a server that has not run."""
        self._socket.close()

    def _serve(self) -> None:
        with self._socket, asyncio.Runner(loop_factory=self._new_loop) as runner:
            runner.run(self._server.serve(sockets=[self._socket]))


def listen(host: str, port: int) -> socket.socket:
    """Listen at an address; connections wait from then on. Raises UserError if it is in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        with contextlib.ExitStack() as undo:
            undo.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
            undo.pop_all()
    except OSError as error:
        raise UserError(
            f"cannot serve at {host}:{port}: {error.strerror or error}; choose another with --port"
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL of a server's socket."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"
