"""The time from a bar's commit to its readable feature row, beside a policy on schedule alone.

Bars are committed as a recorder does: those of one minute over its first second, in batches. A
reader polls for each row. With the worker a minute of bars is stored every few seconds, which is
more than an exchange sends; on schedule alone, every minute. The worker is the process that users
run; the schedule runs the statements of a database job.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psutil

from benchmarks.bars import DAY, FIRST, create_generator, insert_bars, moment, refresh, settle
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Workbench,
    WrongResultError,
    another_session,
    queries,
    require_exact,
    value,
)
from benchmarks.worker_process import running_worker

SYMBOLS = (1, 100, 1000)
ROUNDS = {1: 40, 100: 20, 1000: 15}
BATCHES = 5
BATCH_SECONDS = 0.2
PAUSE = 1.0  # seconds after the rows of a minute are read
READY = 90  # closed minutes without bars, for the rounds
PROMISED = {100: ("p50", 0.06), 1000: ("p99", 0.15)}
PATIENCE = 120.0

IDLE_SECONDS = 20.0
IDLE = 0.005  # of a core

WRITERS = 8
WRITING_SECONDS = 2.0


@dataclass
class Side:
    """A database whose policy is run, and the next closed minute that has no bars yet."""

    connection: Connection
    next_minute: int
    lags: dict[int, list[float]] = field(default_factory=dict)


def run(bench: Workbench) -> Result:
    """Measure the lag at each number of symbols on both sides, and the cost of marks."""
    small = bench.scale < 0.05
    sizes = {size: bench.scaled(size) for size in SYMBOLS}
    interval = 2 if small else 60
    with ExitStack() as stack:
        most = max(*sizes.values(), WRITERS)
        woken, scheduled = (
            _prepare(bench, stack.enter_context(bench.database(name)), most)
            for name in ("lag_woken", "lag_scheduled")
        )
        for side in (woken, scheduled):
            side.connection.execute(queries["set_schedule"], {"seconds": interval})
        scheduled.connection.execute(queries["disable_triggers"])
        commits = _commits_per_second(bench, woken, scheduled)
        for query in ("enable_triggers", "mark_all"):
            scheduled.connection.execute(queries[query])
        for side in (woken, scheduled):
            refresh(side.connection)
        worker = stack.enter_context(running_worker(bench, woken.connection))
        idle = _idle(bench, worker)
        for size, symbols in sizes.items():
            bench.show(f"{symbols} symbols a minute")
            for _ in range(bench.rounds(ROUNDS[size])):
                _measure(woken, size, symbols, woken.next_minute)
                time.sleep(0 if small else PAUSE)
        # After the worker's rounds: a refresh of one side would make rows of the other side wait.
        with _schedule(scheduled.connection, interval):
            for size, symbols in sizes.items():
                bench.show(f"{symbols} symbols a minute, on schedule")
                _on_schedule(scheduled, size, symbols, interval)
        for side in (woken, scheduled):
            require_exact(side.connection, start=moment(side.next_minute - READY))
        slices = value(woken.connection, "woken_slices")
    return Result(
        ratios=[
            *_ratios(sizes, woken, scheduled),
            Ratio(
                f"commits a second of {WRITERS} writers: share left with marks",
                commits["marked"] / commits["without triggers"],
            ),
            Ratio("idle worker: share of a core", idle, at_most=IDLE),
        ],
        figures=_figures(sizes, woken, scheduled)
        | {"seconds between runs of the schedule": interval, "slices of woken refreshes": slices}
        | {
            f"commits a second of {WRITERS} writers, {name}": speed
            for name, speed in commits.items()
        },
        seconds={
            f"{name}, {sizes[size]} of {size} symbols": lags
            for name, side in (("woken", woken), ("on schedule", scheduled))
            for size, lags in side.lags.items()
        },
    )


def _prepare(bench: Workbench, connection: Connection, symbols: int) -> Side:
    """Store the bars that leave the windows of the next minutes, and the newest bars."""
    bench.show(f"{symbols} symbols, the last day")
    create_generator(connection)
    first_new = int((datetime.now(UTC) - FIRST).total_seconds()) // 60 - READY
    connection.execute(queries["remove_policy"])
    for minutes in (
        range(first_new - DAY, first_new - DAY + 2 * READY),
        range(first_new - READY, first_new),
    ):
        insert_bars(connection, range(1, symbols + 1), minutes)
    refresh(connection)
    settle(connection)
    return Side(connection, first_new)


def _idle(bench: Workbench, worker: psutil.Popen) -> float:
    """Return the share of a core that the worker uses when it has nothing to refresh."""
    seconds = IDLE_SECONDS if bench.scale >= 0.05 else 0.5
    bench.show(f"idle for {seconds:g} s")
    before = worker.cpu_times()
    time.sleep(seconds)
    after = worker.cpu_times()
    used = float(after.user + after.system - before.user - before.system)
    return max(used, 0.01) / seconds  # the system counts in ticks of 10 ms


@contextmanager
def _schedule(connection: Connection, interval: int) -> Iterator[None]:
    """Run the policy as a database job does, five seconds after each interval's start."""
    stopped = threading.Event()

    def run() -> None:
        with another_session(connection) as session:
            while not stopped.wait(interval - (time.time() - 5) % interval):
                session.execute(queries["run_job"])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _on_schedule(side: Side, size: int, symbols: int, interval: int) -> None:
    """Measure the minute that ends next; its bars are stored just after its end."""
    if interval == 60:
        time.sleep(60.2 - time.time() % 60)
        minute = int((datetime.now(UTC) - FIRST).total_seconds()) // 60 - 1
    else:
        minute = side.next_minute
    _measure(side, size, symbols, minute)


def _measure(side: Side, size: int, symbols: int, minute: int) -> None:
    """Commit the bars of one minute, and note when each row can be read."""
    side.next_minute += 1
    committed: dict[str, float] = {}
    seen: dict[str, float] = {}
    with another_session(side.connection) as reader:
        thread = threading.Thread(target=_watch, args=(reader, minute, symbols, seen))
        thread.start()
        began = time.monotonic()
        for number, batch in enumerate(_batches(symbols)):
            time.sleep(max(0.0, began + number * BATCH_SECONDS - time.monotonic()))
            insert_bars(side.connection, batch, range(minute, minute + 1))
            now = time.monotonic()
            committed |= {_name(symbol): now for symbol in batch}
        thread.join()
    if seen.keys() != committed.keys():
        raise WrongResultError(f"{len(seen)} of {symbols} rows were there in {PATIENCE:.0f} s")
    # A row can be read before the writer's COMMIT returns: too short to measure.
    lags = [max(seen[symbol] - committed[symbol], 1e-4) for symbol in committed]
    side.lags.setdefault(size, []).extend(lags)


def _watch(reader: Connection, minute: int, symbols: int, seen: dict[str, float]) -> None:
    """Poll for the rows of one minute until all are there."""
    deadline = time.monotonic() + PATIENCE
    pause = 0.002 + symbols * 2e-5  # a reader must not use a whole core
    while len(seen) < symbols and time.monotonic() < deadline:
        rows = reader.execute(queries["rows_of_minute"], {"bucket": moment(minute)}).fetchall()
        now = time.monotonic()
        for (symbol,) in rows:
            seen.setdefault(symbol, now)
        time.sleep(pause)


def _batches(symbols: int) -> list[range]:
    count = min(BATCHES, symbols)
    ends = [symbols * number // count for number in range(count + 1)]
    return [range(ends[i] + 1, ends[i + 1] + 1) for i in range(count)]


def _name(symbol: int) -> str:
    return f"SYM{symbol:04d}/USDT"


def _commits_per_second(bench: Workbench, woken: Side, scheduled: Side) -> dict[str, float]:
    """Let several writers commit single bars, with the triggers that mark them and without."""
    bench.show(f"{WRITERS} writers at once")
    seconds = WRITING_SECONDS if bench.scale >= 0.05 else 0.1
    speeds: dict[str, list[float]] = {"marked": [], "without triggers": []}
    for number in range(bench.rounds(4)):
        sides = (("marked", woken), ("without triggers", scheduled))
        for name, side in sides[:: 1 if number % 2 else -1]:
            with ThreadPoolExecutor(WRITERS) as pool:
                counts = pool.map(
                    lambda writer, side=side: _commit_bars(side, writer, seconds), range(WRITERS)
                )
                speeds[name].append(sum(counts) / seconds)
    return {name: statistics.median(found) for name, found in speeds.items()}


def _commit_bars(side: Side, writer: int, seconds: float) -> int:
    """Correct the writer's own bar repeatedly; return the number of commits."""
    until = time.monotonic() + seconds
    count = 0
    bar = {"symbol": writer + 1, "minute": side.next_minute - 1}
    with another_session(side.connection) as session:
        while time.monotonic() < until:
            session.execute(queries["write_bar"], {**bar, "by": count % 2 + 1})
            count += 1
    return count


def _quantiles(lags: list[float]) -> dict[str, float]:
    ordered = sorted(lags)
    return {
        "p50": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "max": ordered[-1],
    }


def _ratios(sizes: dict[int, int], woken: Side, scheduled: Side) -> list[Ratio]:
    ratios = []
    for size, symbols in sizes.items():
        fast, slow = _quantiles(woken.lags[size]), _quantiles(scheduled.lags[size])
        name = f"lag at {symbols} symbols a minute"
        if size in PROMISED:
            which, promised = PROMISED[size]
            what = f"{name}: {which}, of the promised {promised:g} s"
            ratios.append(Ratio(what, fast[which] / promised, at_most=1))
        ratios.append(Ratio(f"{name}: times less than on schedule", slow["p50"] / fast["p50"]))
    return ratios


def _figures(sizes: dict[int, int], woken: Side, scheduled: Side) -> dict[str, float]:
    return {
        f"lag {name}, {symbols} of {size} symbols, {which} (ms)": 1000 * seconds
        for size, symbols in sizes.items()
        for name, side in (("woken", woken), ("on schedule", scheduled))
        for which, seconds in _quantiles(side.lags[size]).items()
    }
