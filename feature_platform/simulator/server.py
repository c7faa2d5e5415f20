"""The server of the simulated exchange."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.protocol import State
from websockets.server import ServerProtocol

from feature_platform.clock import Clock
from feature_platform.errors import UserError
from feature_platform.http_server import HttpServer, StoppableServer, listen
from feature_platform.settings import get_settings
from feature_platform.simulator.binance_archives import add_archives
from feature_platform.simulator.binance_rest import abort_connection, create_app
from feature_platform.simulator.binance_streams import add_streams
from feature_platform.simulator.event_publisher import EventPublisher
from feature_platform.simulator.faults import Fault, Faults, parse_faults
from feature_platform.simulator.published import PublishedBars
from feature_platform.simulator.truth import GeneratedTruth, RecordedTruth, Truth
from feature_platform.simulator.weights import LIMIT, Weights

# The longest time that late answers delay a stop.
_GRACE_SECONDS = 2


class SimulatedExchange(HttpServer):
    """Serve a truth over HTTP and WebSockets, at `url`, with faults.

    truth: the bars to publish.
    faults: the faults at the start; `set_faults` replaces them later.
    seed: the seed of random choices of faults.
    clock: the clock that decides which bars are closed; by default the platform's.
    port: 0 for any free port; `url` has its number.
    weight_limit: the request weight that an address may use in a minute, as Binance counts it.
    update_seconds: the time between stream updates of the current minute, by its clock.
    Raises UserError if the address cannot be used.
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
        listener = listen(host, port)
        self.published = PublishedBars(truth, self.faults, self.clock)
        self.publisher = EventPublisher(self.published, update_seconds)
        app = create_app(self.published, Weights(self.clock, weight_limit))
        add_streams(app, self.published, self.publisher)
        add_archives(app, self.published)
        super().__init__(listener, _Server(app), name="simulated exchange")

    def set_faults(self, *faults: dict[str, Any]) -> None:
        """Replace all faults by these, each as JSON: `{"kind": "reset"}`.

        Raises UserError if one is not valid.
        """
        self.faults.replace(parse_faults(faults))


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
    """Return the exchange that the options of `feature-platform simulate` describe.

    symbols: separated by commas; by default those of the settings.
    faults: JSON, or @ and the path of a JSON file.
    bars: a file of the bars of `symbol`, served instead of generated ones.
    Raises UserError if an option is wrong.
    """
    if (bars is None) != (symbol is None):
        raise UserError("--bars and --symbol go together: a file of bars, and their symbol")
    if bars is not None and symbols is not None:
        raise UserError("--symbols is for generated bars: do not use it with --bars")
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
    """Return the given text, or that of the file whose path follows an @."""
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--faults {given}: cannot be read: {error}") from None


class _Server(StoppableServer):
    """A uvicorn server that can reset connections."""

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
            # A header must not change the address of a client.
            proxy_headers=False,
            server_header=False,
            date_header=False,  # it would use this machine's clock and not the exchange's
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Stop the server; may be called from any thread or a signal handler."""
        super().stop()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has stopped already
                self._loop.call_soon_threadsafe(self._stopped.set)

    async def main_loop(self) -> None:
        """Wait for the stop event; uvicorn's own loop polls ten times a second."""
        self._loop = asyncio.get_running_loop()
        if not self.should_exit:
            await self._stopped.wait()

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """End all connections; uvicorn's own method fails if the client is closing one."""
        # Another client may begin to close its connection while uvicorn removes the aborted ones.
        while closing := [each for each in self.server_state.connections if _is_closing(each)]:
            for connection in closing:
                connection.transport.abort()
            await asyncio.sleep(0)  # until uvicorn removes them from its list
        await super().shutdown(sockets)

    def _abort(self, client: tuple[str, int]) -> None:
        for connection in self._connections(client):
            abort_connection(connection.transport)

    def _deafen(self, client: tuple[str, int], deaf: bool) -> None:
        """Stop or resume reads and pings of a WebSocket, as if the network failed."""
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


def _is_closing(connection: Any) -> bool:
    protocol = getattr(connection, "conn", None)
    return isinstance(protocol, ServerProtocol) and protocol.state is State.CLOSING
