"""The newest row over HTTP, beside Feast's Python feature server over the same values.

Both are a process of their own with one worker and read the same PostgreSQL server. Four loopback
connections send requests to them in turns, for one symbol after the other.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlencode

import psycopg
import pyarrow as pa

from benchmarks.bars import settle
from benchmarks.feast_server import VIEW, FeastMissingError, feast_server, install
from benchmarks.full_build import build, load
from benchmarks.harness import Connection, Ratio, Result, Workbench, require
from benchmarks.load import CONNECTIONS, Load, Request, put_load, tool
from feature_platform.queries import queries
from feature_platform.service.formats import FEATURES
from feature_platform.service.rows import COLUMNS

DAYS = 3
SECONDS = 8.0
WARM_UP_SECONDS = 1.0
SMALL_SECONDS = 0.3  # at a small scale
ROUNDS = 5
OURS, FEAST = "feature-platform serve", "feast serve"


def run(bench: Workbench) -> Result:
    """Measure rate and times of both, and of the query alone."""
    small = bench.scale < 0.05
    symbols = bench.scaled(100, at_least=2)
    with ExitStack() as stack:
        connection = stack.enter_context(bench.database("serve_latest"))
        bench.show(f"{symbols} symbols, {DAYS} days; {CONNECTIONS} connections by {tool()}")
        load(connection, symbols, DAYS)
        build(connection)
        settle(connection)
        url = bench.url_of(connection)
        rows = _newest_rows(connection)
        require(symbols, rows.num_rows, "symbols")
        names = rows["symbol"].to_pylist()
        sides = {OURS: (stack.enter_context(_service(url)), _our_requests(names))}
        _check_ours(sides[OURS][0], rows)
        try:
            if small:
                raise FeastMissingError("the scale is too small for a comparison")
            feast = stack.enter_context(feast_server(install(), url, rows))
        except FeastMissingError as error:
            bench.show(f"without Feast: {error}")
        else:
            sides[FEAST] = (feast, _feast_requests(names))
            _check_feast(feast, rows)
        loads: dict[str, list[Load]] = {name: [] for name in sides}
        for number in range(bench.rounds(ROUNDS) + 1):
            for name, (server, requests) in sides.items():
                seconds = SMALL_SECONDS if small else SECONDS if number else WARM_UP_SECONDS
                found = put_load(server, requests, seconds)
                if number > 0:  # the first is for warming up
                    loads[name].append(found)
        alone = _query_alone(url, names, 20 if small else 1000)
    return _result(loads, alone)


def _result(loads: dict[str, list[Load]], alone: list[float]) -> Result:
    ours = loads[OURS]
    ratios = [
        Ratio(
            f"latest, {CONNECTIONS} connections: p50 in times of the query alone",
            statistics.median(load.p50 for load in ours) / statistics.median(alone),
        )
    ]
    figures: dict[str, float] = {}
    for name, found in loads.items():
        figures[f"requests/s, {name}, by {tool()}"] = statistics.median(load.rate for load in found)
        figures[f"p50 ms, {name}"] = 1000 * statistics.median(load.p50 for load in found)
        figures[f"p99 ms, {name}"] = 1000 * statistics.median(load.p99 for load in found)
    if FEAST in loads:
        pairs = list(zip(ours, loads[FEAST], strict=True))
        ratios += [
            Ratio(
                "latest: rate in times of Feast's",
                statistics.median(our.rate / feast.rate for our, feast in pairs),
                at_least=3,
            ),
            Ratio(
                "latest: p99 in times of Feast's",
                statistics.median(our.p99 / feast.p99 for our, feast in pairs),
                at_most=1 / 3,
            ),
        ]
    return Result(ratios, figures, {"the query alone, one connection": alone})


def _newest_rows(connection: Connection) -> pa.Table:
    with connection.cursor() as cursor:
        names = [row[0] for row in cursor.execute(queries["service_symbols"])]
        found = cursor.execute(queries["service_latest"], {"symbols": names}).fetchall()
    columns = [list(column) for column in zip(*(row[: len(COLUMNS)] for row in found), strict=True)]
    return pa.table(columns, schema=FEATURES)


@contextmanager
def _service(url: str) -> Iterator[str]:
    """Serve the database of `url` from a process of its own; give the service's URL."""
    with subprocess.Popen(
        [sys.executable, "-m", "feature_platform.cli.app", "serve", "--port", "0"],
        env={**os.environ, "FEATURE_PLATFORM_DATABASE_URL": url},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            require(True, "serving at " in line, line)
            yield line.split()[-1]
        finally:
            process.terminate()


def _our_requests(symbols: Sequence[str]) -> list[Request]:
    return [
        Request("GET", f"/v1/features/latest?{urlencode({'symbol': symbol})}") for symbol in symbols
    ]


def _feast_requests(symbols: Sequence[str]) -> list[Request]:
    features = [f"{VIEW}:{name}" for name in COLUMNS[2:]]
    return [
        Request(
            "POST",
            "/get-online-features",
            json.dumps({"features": features, "entities": {"symbol": [symbol]}}),
        )
        for symbol in symbols
    ]


def _fetch(url: str, one: Request) -> Any:
    request = urllib.request.Request(
        url + one.path,
        None if one.body is None else one.body.encode(),
        {"Content-Type": "application/json"},
        method=one.method,
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _check_ours(url: str, rows: pa.Table) -> None:
    for row, one in zip(rows.to_pylist(), _our_requests(rows["symbol"].to_pylist()), strict=True):
        (got,) = _fetch(url, one)["rows"]
        for name in COLUMNS[2:]:
            require(row[name], got[name], f"{name} of {row['symbol']}")


def _check_feast(url: str, rows: pa.Table) -> None:
    for row, one in zip(rows.to_pylist(), _feast_requests(rows["symbol"].to_pylist()), strict=True):
        answer = _fetch(url, one)
        got = {
            name: result["values"][0]
            for name, result in zip(
                answer["metadata"]["feature_names"], answer["results"], strict=True
            )
        }
        for name in COLUMNS[2:]:
            require(row[name], got[name], f"{name} of {row['symbol']} by Feast")


def _query_alone(url: str, symbols: Sequence[str], times: int) -> list[float]:
    """Time the service's query, prepared, from one connection that does nothing else."""
    taken = []
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.cursor(binary=True)
        for number in range(times + 10):
            parameters = {"symbols": [symbols[number % len(symbols)]]}
            began = time.perf_counter()
            cursor.execute(queries["service_latest"], parameters, prepare=True).fetchall()
            taken.append(time.perf_counter() - began)
    return taken[10:]
