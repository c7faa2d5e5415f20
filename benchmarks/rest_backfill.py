"""A backfill over REST into the database, beside ccxt alone paging the same range.

Both send their requests in turns to the same simulated exchange, a process of its own, without a
rate limit. The backfill also checks each row, stores the bars, and accounts for the minutes without
one.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.harness import (
    Ratio,
    Result,
    Workbench,
    interleave,
    ratio_of_medians,
    require,
    timed,
)
from feature_platform.backfill import BackfillReport, backfill
from feature_platform.exchange.client import Exchange, make_client

SYMBOL = "BTC/USDT"
DAYS = 20
PAGE = 1000  # bars, Binance's limit of one answer
MINUTE_MS = 60_000


def run(bench: Workbench) -> Result:
    """Measure both over the same days; each round has later days."""
    days = timedelta(days=bench.scaled(DAYS))
    rounds = bench.rounds(7)
    bars = days // timedelta(minutes=1)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    starts = [today - days * (rounds + 1 - number) for number in range(rounds + 1)]
    with (
        _simulator() as url,
        closing(make_client("binance", (SYMBOL,), url, rate_limit=False)) as client,
        Exchange("binance", (SYMBOL,), url=url, rate_limit=False) as exchange,
        bench.database("rest_backfill") as connection,
    ):
        bench.show(f"{bars:,} bars of one symbol at a time")
        client.load_markets()
        exchange.check()

        def stored(start: datetime) -> float:
            reports: list[BackfillReport] = []
            seconds = timed(
                lambda: reports.append(backfill(connection, exchange, SYMBOL, start, start + days))
            )
            require(
                (bars, 0, None),
                (reports[0].stored.inserted, reports[0].rejected_rows, reports[0].error),
                "bars stored, rows rejected, error",
            )
            return seconds

        def paged(start: datetime) -> float:
            rows: list[Any] = []
            seconds = timed(lambda: rows.extend(_pages(client, start, start + days)))
            require(bars, len(rows), "bars paged")
            return seconds

        paged(starts[0])  # the first connection is not representative
        stored(starts[0])
        ours, theirs = iter(starts[1:]), iter(starts[1:])
        seconds = interleave(
            {
                "ccxt alone": lambda: paged(next(theirs)),
                "backfill": lambda: stored(next(ours)),
            },
            rounds,
        )
    return Result(
        ratios=[
            Ratio(
                f"REST backfill of {bars:,} bars: rate in times of ccxt alone",
                ratio_of_medians(seconds["ccxt alone"], seconds["backfill"]),
            )
        ],
        figures={
            "bars": bars,
            "pages": -(-bars // PAGE),
            "bars/s, ccxt alone": bars / statistics.median(seconds["ccxt alone"]),
            "bars/s, backfill": bars / statistics.median(seconds["backfill"]),
        },
        seconds=seconds,
    )


def _pages(client: Any, start: datetime, end: datetime) -> Iterator[Any]:
    """Yield the rows of [start, end), by pages as ccxt's manual shows."""
    since, stop = (round(moment.timestamp() * 1000) for moment in (start, end))
    while since < stop:
        limit = min(PAGE, (stop - since) // MINUTE_MS)
        rows = client.fetch_ohlcv(SYMBOL, "1m", since, limit)
        yield from rows
        since = rows[-1][0] + MINUTE_MS


@contextmanager
def _simulator() -> Iterator[str]:
    """Simulate the exchange in a process of its own; give its URL."""
    command = (sys.executable, "-u", "-m", "feature_platform.cli.app", "simulate", "--port", "0")
    with subprocess.Popen(
        [*command, "--symbols", SYMBOL],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            require(True, line.startswith("simulating Binance at "), line or "no simulator")
            yield line.split()[3].removesuffix(":")
        finally:
            process.terminate()
