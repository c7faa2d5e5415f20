"""Run the simulated exchange: in this process until it is told to stop, or beside a test."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.protocol import State
from websockets.server import ServerProtocol

from feature_platform.clock import Clock
from feature_platform.errors import UserError
from feature_platform.listening_socket import listen, url_of
from feature_platform.settings import get_settings
from feature_platform.simulator.binance_archives import add_archives
from feature_platform.simulator.binance_rest import abort_connection, create_app
from feature_platform.simulator.binance_streams import add_streams
from feature_platform.simulator.faults import Fault, Faults, parse_faults
from feature_platform.simulator.feed import Feed
from feature_platform.simulator.truth import GeneratedTruth, RecordedTruth, Truth
from feature_platform.simulator.venue import Venue
from feature_platform.simulator.weights import LIMIT, Weights

_log = logging.getLogger(__name__)

# How long answers that are late may keep a server from stopping.
_GRACE_SECONDS = 2


class SimulatedExchange:
    """Serve a truth over HTTP and WebSockets, with faults.

    As a context manager it runs in a thread of this process.

    truth: what there is to publish.
    faults: those of the start; `set_faults` has others later.
    seed: of what is random in faults.
    clock: what decides which bars are over; by default the platform's.
    port: 0 takes any that is free; `url` tells which.
    weight_limit: what one address may ask in a minute, by Binance's measure.
    update_seconds: of its clock, between what streams send of the minute that goes on.
    Raises UserError where the address cannot be had.
    """

    def __init__(
        self,
        truth: Truth,
        faults: Iterable[Fault] = (),
        *,
        seed: int = 0,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        weight_limit: int = LIMIT,
        update_seconds: float = 1.0,
    ) -> None:
        self.truth = truth
        self.faults = Faults(faults, seed)
        self.clock = clock or get_settings().clock
        self._socket = listen(host, port)
        self.url = url_of(self._socket)
        self.venue = Venue(truth, self.faults, self.clock)
        self.feed = Feed(self.venue, update_seconds)
        app = create_app(self.venue, Weights(self.clock, weight_limit))
        add_streams(app, self.venue, self.feed)
        add_archives(app, self.venue)
        self._server = _Server(app)
        self._thread: threading.Thread | None = None

    def set_faults(self, *faults: dict[str, Any]) -> None:
        """Have these faults and no others, each as JSON would have it: `{"kind": "reset"}`.

        Raises UserError where one is none.
        """
        self.faults.replace(parse_faults(faults))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""

        def stop(number: int, _frame: FrameType | None) -> None:
            _log.info("stopping signal=%s", signal.Signals(number).name)
            self._server.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        self._serve()
        _log.info("stopped")

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._serve, name="simulated exchange", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._thread is not None
        self._server.stop()
        self._thread.join()

    def _serve(self) -> None:
        with self._socket:
            asyncio.run(self._server.serve(sockets=[self._socket]))


def make_exchange(
    *,
    host: str,
    port: int,
    seed: int,
    symbols: str | None,
    faults: str | None,
    bars: Path | None,
    symbol: str | None,
    update_seconds: float = 1.0,
) -> SimulatedExchange:
    """Make what the options of `feature-platform simulate` ask for.

    symbols: with commas; by default those of the settings.
    faults: JSON, or @ and the path of a file of it.
    bars: a file of the bars of `symbol`, to be served instead of generated ones.
    Raises UserError where an option is wrong.
    """
    if (bars is None) != (symbol is None):
        raise UserError("--bars and --symbol go together: a file, and whose bars it holds")
    if bars is not None and symbols is not None:
        raise UserError("--symbols names generated markets: leave it out with --bars")
    truth: Truth
    if bars is not None and symbol is not None:
        truth = RecordedTruth(symbol, bars)
    elif symbols is None:
        truth = GeneratedTruth(get_settings().symbols, seed)
    else:
        truth = GeneratedTruth([name for one in symbols.split(",") if (name := one.strip())], seed)
    return SimulatedExchange(
        truth,
        parse_faults(_text_of(faults or "[]")),
        seed=seed,
        host=host,
        port=port,
        update_seconds=update_seconds,
    )


def _text_of(given: str) -> str:
    """Return the text of a file where its name is given, after an @."""
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--faults {given}: cannot be read: {error}") from None


class _Server(uvicorn.Server):
    """Leave signals to whoever runs it, and let answers be cut off."""

    def __init__(self, app: ASGIApp) -> None:
        async def app_with_abort(scope: Scope, receive: Receive, send: Send) -> None:
            hooks = {"abort": self._abort, "deafen": self._deafen}
            scope["state"] = {**scope.get("state", {}), **hooks}
            await app(scope, receive, send)

        config = uvicorn.Config(
            app_with_abort,
            interface="asgi3",
            http="h11",
            ws="websockets-sansio",
            ws_ping_interval=20.0,  # as Binance does
            ws_ping_timeout=60.0,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            # A header must not make somebody else of who asks.
            proxy_headers=False,
            server_header=False,
            date_header=False,  # it would be this machine's and not the venue's
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Ask the server to stop, from any thread or a signal's handler."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has stopped already
                self._loop.call_soon_threadsafe(self._stopped.set)

    async def main_loop(self) -> None:
        """Wait until it is to stop; uvicorn's own looks ten times a second."""
        self._loop = asyncio.get_running_loop()
        if not self.should_exit:
            await self._stopped.wait()

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """End all connections; uvicorn's own way fails where the other end is just leaving."""
        for connection in list(self.server_state.connections):
            protocol = getattr(connection, "conn", None)
            if isinstance(protocol, ServerProtocol) and protocol.state is State.CLOSING:
                connection.transport.abort()
        await asyncio.sleep(0)  # until they are taken off the list
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _abort(self, client: tuple[str, int]) -> None:
        for connection in self._connections(client):
            abort_connection(connection.transport)

    def _deafen(self, client: tuple[str, int], deaf: bool) -> None:
        """Have a WebSocket neither read nor ping, as if the way to it was cut; or do again."""
        for connection in self._connections(client):
            if deaf:
                connection.stop_keepalive()
                connection.transport.pause_reading()
            else:
                connection.transport.resume_reading()
                connection.start_keepalive()

    def _connections(self, client: tuple[str, int]) -> list[Any]:
        return [
            connection
            for connection in self.server_state.connections
            if getattr(connection, "client", None) == client
        ]
