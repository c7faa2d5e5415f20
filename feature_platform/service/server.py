"""The server of the service."""

from __future__ import annotations

import asyncio
import logging

import uvloop

from feature_platform import database as platform_database
from feature_platform.errors import UserError
from feature_platform.http_server import HttpServer, StoppableServer, listen
from feature_platform.schema import prepare
from feature_platform.service.app import create_app
from feature_platform.service.connections import LimitedConfig, Limits
from feature_platform.service.pool import QueryPool
from feature_platform.service.serve_log import ServeLog
from feature_platform.settings import Settings, get_settings, is_loopback

_GRACE_SECONDS = 10

_log = logging.getLogger(__name__)


class Service(HttpServer):
    """Serve features over HTTP, at `url`.

    settings: the database, the API key, the age of a stale row; by default of the environment.
    port: 0 for a free one.
    limits: of connections; by default the usual ones.
    Raises UserError if the address is in use, or would be open to every machine without a key.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
    ) -> None:
        settings = settings or get_settings()
        if settings.api_key is None and not is_loopback(host):
            raise UserError(
                f"{host} can be reached from other machines: set FEATURE_PLATFORM_API_KEY first,"
                " or serve at 127.0.0.1"
            )

        async def where() -> str:
            # In a thread, as it may have to start the embedded server again.
            url = await asyncio.to_thread(platform_database.database_url, settings)
            return platform_database.with_clock(url)

        listener = listen(host, port)
        app = create_app(
            QueryPool(where),
            ServeLog(where, settings.serve_log),
            stale_after=settings.stale_after,
            key=None if settings.api_key is None else settings.api_key.get_secret_value(),
        )
        proxies = settings.proxies
        config = LimitedConfig(
            app,
            limits or Limits(proxies),
            ws="none",
            log_config=None,
            access_log=False,
            # A header changes the peer only if a trusted proxy has sent it.
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        server = StoppableServer(config)
        super().__init__(listener, server, name="service", new_loop=uvloop.new_event_loop)


def run_service(host: str, port: int) -> None:
    """Serve from this process until SIGTERM or SIGINT.

    Waits for a database that is down. Raises UserError if its schema is not this code's.
    """
    service = Service(host=host, port=port)
    try:
        _check_schema()
        _log.info("serving at %s", service.url)
        service.run()
    finally:
        service.close()


def _check_schema() -> None:
    try:
        connection = platform_database.connect()
    except UserError as error:
        if get_settings().database_url is None:
            raise  # the embedded server cannot run, and waiting does not help
        _log.warning("%s; serving 503 until that changes", error)
        return
    with connection:
        prepare(connection)
