"""Metrics in Prometheus' format: the requests of the service, and the state of the platform.

The database is read at most once in a few seconds, however often the metrics are requested.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import APIRouter
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from psycopg.rows import TupleRow
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_platform.service.pool import DatabaseUnavailableError, QueryPool
from feature_platform.service.serve_log import ServeLog

_FRESH = 2.0  # seconds
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlatformState:
    """The state in the database; each field has the rows of the query of its name."""

    symbols: list[TupleRow]
    dirty: list[TupleRow]
    gaps: list[TupleRow]
    policy: list[TupleRow]
    runs: list[TupleRow]
    recorder: list[TupleRow]
    views: list[TupleRow]
    skew: list[TupleRow]


class Metrics:
    """The metrics of one service."""

    def __init__(self, pool: QueryPool, log: ServeLog) -> None:
        self._pool = pool
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "feature_platform_http_request_seconds",
            "Time from a request to the end of its answer.",
            ("route", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._platform = _PlatformCollector()
        self._registry.register(self._platform)
        if log.is_on:
            self._registry.register(_LogCollector(log))
        ProcessCollector(registry=self._registry)
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")

    def timed(self, app: ASGIApp) -> ASGIApp:
        """Return an application that measures the time of each request to `app`."""
        children: dict[tuple[str, int], Histogram] = {}

        async def timed_app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = 500

            async def noting_send(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            began = time.perf_counter()
            try:
                await app(scope, receive, noting_send)
            finally:
                # Unknown paths may be any number, and share one name.
                key = (getattr(scope.get("route"), "path", "none"), status)
                child = children.get(key)
                if child is None:
                    child = children[key] = self._requests.labels(*map(str, key))
                child.observe(time.perf_counter() - began)

        return timed_app

    async def exposition(self) -> bytes:
        """Return all metrics; without those of the platform while its database is down."""
        async with self._reading:
            if time.monotonic() - self._read_at >= _FRESH:
                self._platform.state = await self._read()
                self._read_at = time.monotonic()
        return generate_latest(self._registry)

    async def _read(self) -> PlatformState | None:
        try:
            return PlatformState(
                symbols=await self._pool.fetch("service_symbols"),
                dirty=await self._pool.fetch("service_dirty"),
                gaps=await self._pool.fetch("service_gaps"),
                policy=await self._pool.fetch("service_policy"),
                runs=await self._pool.fetch("service_policy_runs"),
                recorder=await self._pool.fetch("service_recorder"),
                views=await self._pool.fetch("service_view_states"),
                skew=await self._pool.fetch("service_skew"),
            )
        except DatabaseUnavailableError as error:
            _log.warning("metrics without those of the database: %s", error)
            return None


class _LogCollector(Collector):
    """Yield the counts of the log of serves."""

    def __init__(self, log: ServeLog) -> None:
        self._log = log

    def collect(self) -> Iterator[Metric]:
        rows = CounterMetricFamily(
            "feature_platform_serve_log_rows",
            "Rows for the log of serves, by their outcome.",
            labels=["outcome"],
        )
        rows.add_metric(["written"], self._log.written)
        rows.add_metric(["dropped"], self._log.dropped)
        yield rows


class _PlatformCollector(Collector):
    """Yield the metrics of the state that was last read."""

    state: PlatformState | None = None

    def collect(self) -> Iterator[Metric]:
        state = self.state
        yield _gauge("database_up", "Whether the database answers.", float(state is not None))
        if state is None:
            return
        # A symbol that is no longer recorded has no age: it would be the maximum for ever.
        over = {row[0] for row in state.recorder if row[1] == "not_recorded"}
        yield _gauges(
            "lag_seconds",
            "Seconds since the end of the minute of a symbol's newest feature row.",
            "symbol",
            [(one, age) for one, _first, _last, age in state.symbols if one not in over],
        )
        ((rows, age),) = state.dirty
        yield _gauge("dirty_rows", "Closed minutes whose feature row waits for a refresh.", rows)
        yield _gauge("dirty_age_seconds", "Seconds since the oldest mark.", age)
        yield _gauges(
            "missing_minutes",
            "Minutes without a bar of the last 24 hours, by the state of the gap.",
            "state",
            state.gaps,
        )
        yield _gauge("policy_present", "Whether there is a refresh policy.", state.policy[0][0])
        yield _gauges(
            "policy_runs",
            "Runs of the last hour, of the last thousand runs, by their outcome.",
            "outcome",
            state.runs,
        )
        yield from _of_the_last_run(state.policy[0])
        yield from _of_the_recorder(state.recorder)
        yield from _of_the_views(state.views)
        yield from _of_served_rows(state.skew)


def _of_the_last_run(row: TupleRow) -> Iterator[Metric]:
    _present, started_at, seconds, written = row
    if started_at is not None:
        yield _gauge("policy_last_start_timestamp_seconds", "Start of the last run.", started_at)
        yield _gauge("policy_last_rows_written", "Rows written by the last run.", written)
    if seconds is not None:
        yield _gauge("policy_last_run_seconds", "Duration of the last run.", seconds)


def _of_the_recorder(rows: list[TupleRow]) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "feature_platform_recorder_state",
        "1 for the state of each symbol's stream.",
        labels=["symbol", "state"],
    )
    for symbol, state, _beat_age, _update_age, _rejected in rows:
        states.add_metric([symbol, state], 1)
    yield states
    rows = [row for row in rows if row[1] != "not_recorded"]
    yield _gauges(
        "recorder_silent_seconds",
        "Seconds since the recorder's last heartbeat of a symbol.",
        "symbol",
        [(row[0], row[2]) for row in rows],
    )
    yield _gauges(
        "recorder_update_age_seconds",
        "Seconds since the last update of a symbol by its stream.",
        "symbol",
        [(row[0], row[3]) for row in rows if row[3] is not None],
    )
    yield _gauges(
        "recorder_rejected_rows",
        "Rows of the stream that were not valid bars, since the recorder started.",
        "symbol",
        [(row[0], row[4]) for row in rows],
    )


def _of_the_views(rows: list[TupleRow]) -> Iterator[Metric]:
    measures = (
        ("view_lag_seconds", "Since the bucket of a view's newest row ended."),
        ("view_dirty_buckets", "Closed buckets of a view that wait for a refresh."),
        ("view_dirty_age_seconds", "Since the oldest of them was marked."),
        ("view_built_ratio", "The part of a view's history that is built, 0 to 1."),
        ("view_failed", "Whether a view has failed, and is no longer refreshed."),
    )
    for place, (name, meaning) in enumerate(measures, 1):
        values = [(row[0], row[place]) for row in rows if row[place] is not None]
        yield _gauges(name, meaning, "view", values)


def _of_served_rows(rows: list[TupleRow]) -> Iterator[Metric]:
    for compared, mismatch, missing, extra, age in rows:
        yield _gauges(
            "skew_rows",
            "Served rows that the last check computed again, and those that were wrong.",
            "result",
            [
                ("compared", compared),
                ("mismatch", mismatch),
                ("missing", missing),
                ("extra", extra),
            ],
        )
        yield _gauge("skew_age_seconds", "Seconds since that check.", age)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"feature_platform_{name}", meaning, value)


def _gauges(name: str, meaning: str, label: str, values: list[TupleRow]) -> Metric:
    family = GaugeMetricFamily(f"feature_platform_{name}", meaning, labels=[label])
    for labelled, value in values:
        family.add_metric([labelled], value)
    return family


def make_router(metrics: Metrics) -> APIRouter:
    """Return the route of metrics."""
    router = APIRouter()

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @router.get("/metrics", response_class=Response, responses={200: text})
    async def give_metrics() -> Response:
        """Return all metrics in Prometheus' text format."""
        return Response(await metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router
