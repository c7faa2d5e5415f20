"""Guards against clients that block the model service by connections, slowness or wrong keys."""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from feature_platform.service.connections import Limits, peer_of
from feature_platform.service.guard import GUESS_SECONDS, MOST_GUESSES, Guesses
from feature_platform.service.server import Service
from feature_platform.settings import Settings
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_processes import PATIENCE, wait_until
from feature_platform_tests.fix_service import ServedDatabase

HALF = b"GET /healthz HTTP/1.1\r\nHost: here\r\n"
WHOLE = HALF + b"\r\n"
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def served(databases: Databases) -> Iterator[ServedDatabase]:
    """Yield a served database with a long history of one symbol."""
    with databases.fresh() as url, ExitStack() as stack:
        database = ServedDatabase(url, stack)
        database.add("LONG", 20_000)
        yield database


@contextmanager
def limited(served: ServedDatabase, **options: float) -> Iterator[Service]:
    """Serve a database with other limits."""
    limits = Limits(**options)  # type: ignore[arg-type]
    with Service(Settings(database_url=SecretStr(served.url)), limits=limits) as service:
        yield service


def line_to(service: Service, stack: ExitStack, sent: bytes = b"") -> socket.socket:
    """Open a connection, and send the first bytes."""
    address = urlsplit(service.url)
    line = stack.enter_context(socket.create_connection((address.hostname, address.port), PATIENCE))
    line.sendall(sent)
    return line


def all_of(line: socket.socket) -> bytes:
    """Return all bytes until the service closes the connection."""
    received = b""
    try:
        while part := line.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def seconds_of_health(service: Service) -> float:
    """Return the seconds that a new client waits for its answer."""
    began = time.monotonic()
    assert httpx.get(f"{service.url}/healthz", trust_env=False, timeout=PATIENCE).status_code == 200
    return time.monotonic() - began


@pytest.mark.timing
def test_half_sent_requests_do_not_block_other_clients(served: ServedDatabase) -> None:
    """Open 1,200 connections of one peer, each with half a request, at the default limits."""
    with ExitStack() as stack:
        lines = [line_to(served.service, stack, HALF) for _ in range(1200)]
        assert max(seconds_of_health(served.service) for _ in range(5)) < 2
        assert all_of(lines[0]) == b""


@pytest.mark.timing
def test_half_a_request_is_closed_at_its_deadline(served: ServedDatabase) -> None:
    with limited(served, header_seconds=0.5) as service, ExitStack() as stack:
        silent, half = line_to(service, stack), line_to(service, stack, HALF)
        second = line_to(service, stack, WHOLE)
        assert second.recv(65536).startswith(b"HTTP/1.1 200 ")
        second.sendall(HALF)
        began = time.monotonic()
        assert all_of(silent) == b""
        for line in (half, second):
            answer = all_of(line)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert answer.endswith(b'{"detail":"the request did not come in time"}')
        assert time.monotonic() - began < 3


def readable(line: socket.socket) -> bool:
    """Wait for at most a tenth of a second; return whether there are bytes to read."""
    return bool(select.select([line], [], [], 0.1)[0])


@pytest.mark.timing
def test_slow_headers_have_one_deadline(served: ServedDatabase) -> None:
    with limited(served, header_seconds=1.0) as service, ExitStack() as stack:
        line = line_to(service, stack, HALF)
        began = time.monotonic()
        line.setblocking(False)
        with suppress(ConnectionError):
            while not readable(line):  # until the service answers or closes
                assert time.monotonic() - began < 20
                line.sendall(b"X: x\r\n")
        assert time.monotonic() - began < 5


def test_requests_in_parts_are_answered(served: ServedDatabase) -> None:
    with limited(served, header_seconds=5.0) as service, ExitStack() as stack:
        line = line_to(service, stack)
        for _ in range(3):
            for byte in WHOLE:
                line.sendall(bytes([byte]))
            assert b'{"status":"alive"}' in line.recv(65536)


def test_the_oldest_waiting_connection_is_closed_at_the_limit(served: ServedDatabase) -> None:
    for limit in ("of_a_peer", "total"):
        with limited(served, **{limit: 2}) as service, ExitStack() as stack:
            first, second = line_to(service, stack, HALF), line_to(service, stack, HALF)
            seconds_of_health(service)
            assert all_of(first) == b""
            second.sendall(b"\r\n")
            assert second.recv(65536).startswith(b"HTTP/1.1 200 ")


def request_of_megabytes(service: Service, stack: ExitStack, buffer: int = 4096) -> socket.socket:
    """Send a request for an answer of megabytes, and do not read the answer.

    buffer: bytes that the system stores for the reader.
    """
    line = line_to(service, stack)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    today = datetime.now(UTC).date()
    window = f"symbol=LONG&start={today - timedelta(days=30)}&end={today + timedelta(days=1)}"
    line.sendall(f"GET /v1/features?{window}&limit=100000 HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert line.recv(12) == b"HTTP/1.1 200"
    return line


def test_a_new_connection_is_rejected_while_all_are_answered(served: ServedDatabase) -> None:
    with limited(served, of_a_peer=2) as service, ExitStack() as stack:
        lines = [request_of_megabytes(service, stack) for _ in range(2)]
        answer = all_of(line_to(service, stack))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        lines[0].close()
        wait_until(lambda: is_served(service), "there is room again")


def is_served(service: Service) -> bool:
    answer = httpx.get(f"{service.url}/healthz", trust_env=False)
    return answer.status_code == httpx.codes.OK


@pytest.mark.timing
def test_an_answer_that_is_not_read_is_aborted(served: ServedDatabase) -> None:
    with limited(served, of_a_peer=1, read_seconds=0.5) as service, ExitStack() as stack:
        request_of_megabytes(service, stack)
        assert not is_served(service)
        wait_until(lambda: is_served(service), "the connection has been aborted", 10)


@pytest.mark.timing
def test_a_slow_reader_gets_the_whole_answer(served: ServedDatabase) -> None:
    with limited(served, read_seconds=3.0) as service, ExitStack() as stack:
        line = request_of_megabytes(service, stack, buffer=1 << 16)
        received = 0
        while part := line.recv(1 << 17):
            received += len(part)
            time.sleep(0.02)
            if part.endswith(b"0\r\n\r\n"):
                break
        assert received > 3_000_000


def list_symbols(http: httpx.Client, key: str) -> httpx.Response:
    return http.get("/v1/symbols", headers={"Authorization": f"Bearer {key}"})


def test_wrong_keys_of_a_peer_are_limited(served: ServedDatabase) -> None:
    _, http = served.serve(api_key=KEY)
    statuses = [
        list_symbols(http, f"wrong-{guess}").status_code for guess in range(MOST_GUESSES + 5)
    ]
    assert statuses == [401] * MOST_GUESSES + [429] * 5
    late = list_symbols(http, KEY)  # a 200 would confirm the key
    assert late.status_code == 429
    assert 1 <= int(late.headers["retry-after"]) <= math.ceil(GUESS_SECONDS)
    assert "wait" in late.json()["detail"]
    assert http.get("/readyz").status_code == 200
    assert http.get("/v1/symbols").status_code == 401


def test_each_client_of_a_proxy_is_a_peer(served: ServedDatabase) -> None:
    _, http = served.serve(api_key=KEY, proxies=("127.0.0.1",))
    for guess in range(MOST_GUESSES + 1):
        http.headers["X-Forwarded-For"] = "192.0.2.7"
        last = list_symbols(http, f"wrong-{guess}")
    assert last.status_code == 429
    http.headers["X-Forwarded-For"] = "192.0.2.8"
    assert list_symbols(http, KEY).status_code == 200


def test_the_forwarded_header_is_ignored_without_a_proxy(served: ServedDatabase) -> None:
    _, http = served.serve(api_key=KEY)
    for guess in range(MOST_GUESSES + 1):
        http.headers["X-Forwarded-For"] = f"192.0.2.{guess}"
        last = list_symbols(http, f"wrong-{guess}")
    assert last.status_code == 429


def test_stored_guesses_expire_and_are_bounded() -> None:
    now = 1000.0
    guesses = Guesses(lambda: now)
    for _ in range(MOST_GUESSES):
        assert guesses.wait("peer") == 0
        guesses.add("peer")
    assert guesses.wait("peer") == GUESS_SECONDS
    assert guesses.wait("other") == 0
    now += GUESS_SECONDS
    assert guesses.wait("peer") == 0
    guesses.add("peer")
    assert guesses.wait("peer") == GUESS_SECONDS
    for number in range(20_000):
        guesses.add(str(number))
    assert len(guesses._forgotten_at) <= 10_000


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("no address", "no address"),
    ],
)
def test_a_peer_is_an_address_or_a_network(host: str, peer: str) -> None:
    assert peer_of((host, 1)) == peer
    assert peer_of(None) == ""
