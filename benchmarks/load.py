"""A bounded load of HTTP requests from a few connections, which wait for each answer.

wrk sends the requests, if it is installed (Debian: `apt-get install wrk`); otherwise threads of
this process do. Such a thread needs longer for a request than a fast server. Rates and times are
then as much the client's as the server's, and a ratio of two servers is smaller than the true one.
"""

from __future__ import annotations

import http.client
import json
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.harness import WrongResultError

CONNECTIONS = 4

# The requests are taken in turn; the results come as one line of JSON.
_SCRIPT = """
local requests = {%s}
local number = 0
wrk.headers["Content-Type"] = "application/json"
function request()
    number = number %% #requests + 1
    local one = requests[number]
    return wrk.format(one[1], one[2], nil, one[3])
end
function done(summary, latency)
    local e = summary.errors
    print(string.format(
        '{"requests": %%d, "microseconds": %%d, "p50": %%d, "p99": %%d, "errors": %%d}',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Request:
    """A request to a path of the server."""

    method: str
    path: str
    body: str | None = None


@dataclass(frozen=True)
class Load:
    """The result of a load; p50 and p99 in seconds."""

    rate: float
    p50: float
    p99: float


def tool() -> str:
    """Return the description of the load generator."""
    return "wrk" if shutil.which("wrk") else "threads"


def put_load(url: str, requests: Sequence[Request], seconds: float) -> Load:
    """Send requests for some seconds; raise WrongResultError if an answer is an error."""
    if tool() == "wrk":
        return _by_wrk(url, requests, max(1, round(seconds)))
    return _by_threads(url, requests, seconds)


def _by_wrk(url: str, requests: Sequence[Request], seconds: int) -> Load:
    lua = ",".join(
        "{" + ",".join(_lua(part) for part in (one.method, one.path, one.body)) + "}"
        for one in requests
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua", encoding="utf-8") as script:
        script.write(_SCRIPT % lua)
        script.flush()
        done = subprocess.run(
            ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script.name, url],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise WrongResultError(f"wrk failed: {done.stderr or done.stdout}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["errors"]:
        raise WrongResultError(f"{found['errors']} requests to {url} failed")
    return Load(
        1e6 * found["requests"] / found["microseconds"], found["p50"] / 1e6, found["p99"] / 1e6
    )


def _lua(text: str | None) -> str:
    return "nil" if text is None else json.dumps(text)


def _by_threads(url: str, requests: Sequence[Request], seconds: float) -> Load:
    taken: list[float] = []
    failed: list[str] = []
    until = time.perf_counter() + seconds

    def send() -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        line = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        number = 0
        while time.perf_counter() < until and not failed:
            one = requests[number % len(requests)]
            number += 1
            began = time.perf_counter()
            line.request(one.method, one.path, one.body, {"Content-Type": "application/json"})
            answer = line.getresponse()
            answer.read()
            taken.append(time.perf_counter() - began)
            if answer.status != 200:
                failed.append(f"{answer.status} for {one.path}")
        line.close()

    threads = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise WrongResultError(f"{url} answered {failed[0]}")
    centiles = statistics.quantiles(taken, n=100)
    return Load(len(taken) / (time.perf_counter() - began), centiles[49], centiles[98])
