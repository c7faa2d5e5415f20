"""Guards against requests without the key, and against hostile requests that have an effect."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from feature_platform.errors import UserError
from feature_platform.service.server import Service
from feature_platform.settings import Settings, get_settings
from feature_platform_tests.fix_processes import PATIENCE
from feature_platform_tests.fix_service import ServedDatabase

KEY = "a-key-of-the-tests"
LATEST = "/v1/features/latest?symbol=KEY"


@pytest.fixture(scope="module", autouse=True)
def known(served: ServedDatabase) -> None:
    """Store the symbols of the requests."""
    served.add("H", 3)
    served.add("KEY", 3)


@pytest.fixture
def locked(served: ServedDatabase) -> httpx.Client:
    """Return a client without the key, of a new service with a key."""
    _, http = served.serve(api_key=KEY)
    return http


@pytest.mark.parametrize(
    "header",
    [None, "", KEY, "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}"],
)
def test_requests_without_the_key_are_rejected(locked: httpx.Client, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for path in (LATEST, "/openapi.json", "/nothing"):
        answer = locked.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY not in answer.text


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer  {KEY}"])
def test_requests_with_the_key_are_answered(locked: httpx.Client, header: str) -> None:
    assert locked.get(LATEST, headers={"Authorization": header}).status_code == 200


def test_health_needs_no_key(locked: httpx.Client) -> None:
    assert locked.get("/healthz").json() == {"status": "alive"}
    assert locked.get("/readyz").json() == {"status": "ready"}


def test_openapi_describes_the_key_if_there_is_one(
    served: ServedDatabase, locked: httpx.Client
) -> None:
    description = locked.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert description["paths"]["/v1/features/latest"]["get"]["security"] == [{"key": []}]
    assert description["paths"]["/healthz"]["get"]["security"] == []
    assert "securitySchemes" not in served.http.get("/openapi.json").json()["components"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_without_a_key_the_service_listens_on_loopback_only(host: str) -> None:
    with pytest.raises(UserError) as caught:
        Service(host=host)
    assert str(caught.value) == (
        f"{host} can be reached from other machines: set FEATURE_PLATFORM_API_KEY first,"
        " or serve at 127.0.0.1"
    )


def test_with_a_key_the_service_listens_on_any_address() -> None:
    with Service(Settings(api_key=SecretStr(KEY)), host="0.0.0.0") as service:
        assert httpx.get(f"{service.url}/healthz", trust_env=False).status_code == 200


@pytest.mark.parametrize("key", ["short", "with a space in it", "schlüssel-schlüssel"])
def test_a_weak_key_is_rejected_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_API_KEY", key)
    with pytest.raises(UserError) as caught:
        get_settings()
    assert str(caught.value) == (
        "FEATURE_PLATFORM_API_KEY: it needs 16 characters or more, of ASCII and without spaces"
    )


def send(served: ServedDatabase, sent: bytes) -> bytes:
    """Send bytes, and return all bytes until the service closes the connection."""
    address = urlsplit(served.service.url)
    with socket.create_connection((address.hostname, address.port), PATIENCE) as line:
        received = b""
        try:
            line.sendall(sent)
            while part := line.recv(65536):
                received += part
        except ConnectionError:  # the service closed before it received all
            pass
        return received


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET /" + b"x" * 1_000_000, id="a path without an end"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000, id="a header without an end"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 200_000, id="headers without an end"),
        pytest.param(b"\0" * 100, id="no HTTP"),
        pytest.param(b"GET /v1/symbols?\xff\x01 HTTP/1.1\r\n\r\n", id="bytes that are no URL"),
        pytest.param(b"GET http://[::1 HTTP/1.1\r\n\r\n", id="a URL that is none"),
    ],
)
def test_bytes_that_are_no_request_are_cut_off(served: ServedDatabase, sent: bytes) -> None:
    answer = send(served, sent)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert served.http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "options",
    [
        {"content": b"x"},
        {"json": {"symbol": "KEY"}},
        {"content": iter([b"x" * 1000] * 1000)},  # in chunks, without a length
    ],
    ids=["bytes", "JSON", "chunks"],
)
def test_a_body_is_rejected(served: ServedDatabase, options: dict[str, Any]) -> None:
    answer = served.http.request("GET", "/healthz", **options)
    assert answer.status_code == 413
    assert answer.json() == {"detail": "a request must not have a body"}


# Input that breaks programs that insert it into SQL, paths, headers, logs and terminals.
HOSTILE = (
    "'; DROP TABLE features_1m; --",
    "' OR '1'='1",
    "X' UNION SELECT current_user --",
    "$1 %s %(symbol)s {symbol} {0}",
    "{a,b}",
    "\"; COPY features_1m TO PROGRAM 'id'; --",
    "\x00",
    "\x1b[2J\r\nSet-Cookie: a=b",
    "\u202eTDSU\u0000/CTB",
    "😀" * 200,
    "../../etc/passwd",
    "${jndi:ldap://127.0.0.1/a}",
    "<script>alert(1)</script>",
    "9" * 4000,
    "-1e400",
    "NaN",
    "infinity",
    "x" * 60_000,
)
PARAMETERS = ("symbol", "start", "end", "limit", "format", "cursor")


def check_harmless(served: ServedDatabase, answer: httpx.Response) -> None:
    """Fail unless the answer is a known one, without internal errors, and the rows still exist."""
    assert answer.status_code in (200, 400, 404, 406, 422), answer.text
    assert "set-cookie" not in answer.headers
    if answer.status_code != 200:
        detail = answer.json()["detail"]
        assert detail.isprintable()
        assert not any(word in detail for word in ("psycopg", "Traceback", "syntax"))
    assert served.conn.execute("SELECT count(*) > 0 FROM features_1m").fetchone() == (True,)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: repr(text[:20]))
def test_hostile_parameters_are_only_values(served: ServedDatabase, hostile: str) -> None:
    check_harmless(
        served, served.http.get("/v1/features/latest", params={"symbol": ["H", hostile]})
    )
    window = {"symbol": "H", "start": "2026-02-01", "end": "2026-02-02"}
    for name in PARAMETERS:
        check_harmless(served, served.http.get("/v1/features", params={**window, name: hostile}))
    header = hostile.encode("utf-8").translate(None, b"\0\r\n\x1b").strip()
    check_harmless(
        served, served.http.get("/v1/features", params=window, headers={b"Accept": header})
    )
    check_harmless(served, served.http.get(f"/v1/{quote(hostile, safe='')}"))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(max_size=300), min_size=3, max_size=3))
def test_any_text_is_only_a_value(served: ServedDatabase, texts: list[str]) -> None:
    symbol, start, end = texts
    check_harmless(served, served.http.get("/v1/features/latest", params={"symbol": symbol}))
    window = {"symbol": symbol, "start": start, "end": end}
    check_harmless(served, served.http.get("/v1/features", params=window))
    check_harmless(
        served,
        served.http.get(
            "/v1/features", params={**window, "start": "1970-01-01", "end": "1970-01-02"}
        ),
    )
