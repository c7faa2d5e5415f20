"""The listening socket of a server."""

from __future__ import annotations

import contextlib
import socket

from feature_platform.errors import UserError


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
