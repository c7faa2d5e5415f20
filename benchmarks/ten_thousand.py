"""Live minutes of 10,000 symbols on one server, in real time.

The database has a year of thin history, two bars a day for each symbol, and each minute of the last
25 hours. Then each minute's bars arrive as from an exchange: over the two seconds after its end, in
batches, with some late bars and corrections. A thread stores them, and the heartbeats, with the
recorder's own statements. The worker is the process that users run. Processor time and memory of
the server are those of all its processes, except this module's own sessions.

At a small scale a minute takes two seconds, and its bars are those of a minute that is over.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import psutil
from psycopg.rows import dict_row

from benchmarks.bars import DAY, FIRST, create_generator, moment, refresh
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Workbench,
    WrongResultError,
    queries,
    require,
    require_exact,
    timed,
    value,
)
from benchmarks.worker_process import running_worker
from feature_platform import schema
from feature_platform.bars import StreamBar, store_stream
from feature_platform.database import connect
from feature_platform.embedded.server import EmbeddedServer
from feature_platform.heartbeat import Heartbeat, begin_heartbeats, write_heartbeats

SYMBOLS = 10_000
MINUTES = 30
FEWEST_MINUTES = 10
THIN = 365 * DAY  # minutes of thin history
THIN_STEP = 720  # minutes between two of its bars
DENSE = 25 * 60  # minutes of full history: the newest windows are full
CONF = {"shared_buffers": "2GB", "max_wal_size": "2GB"}

# When the bars of a minute arrive, in seconds after its end.
BATCHES = 20
BATCH_SECONDS = 0.1
LATE_SECONDS = (10, 15, 20, 25, 30, 35, 40)
LATE = 0.01  # of the symbols
CORRECTION_SECONDS = 20
CORRECTED = 0.005  # of the symbols, bars of the same minute
OLD_SECONDS = 30
HOUR_OLD = 0.0005  # of the symbols, bars of an hour ago; and one bar of twelve hours ago
BEAT_SECONDS = (4, 14, 24, 34, 44, 54)
LOOK_SECONDS = 54.5
START_SECONDS = 15  # at least, before the first live minute is over

PROMISED = 1.0  # seconds, p99
PATIENCE = 120.0
SAMPLE = 100  # symbols whose whole history is verified
READY = 10  # minutes without bars at a small scale

_MEGABYTE = 1e6


@dataclass(frozen=True)
class Look:
    """Counters of the server and the processes at one time.

    cpu: processor seconds by the kind of process.
    megabytes: memory by the kind of process, with its part of shared memory.
    server: the server's own counters and sizes, by name.
    """

    cpu: dict[str, float]
    megabytes: dict[str, float]
    server: dict[str, float]


@dataclass
class Minute:
    """The bars of one minute: when each symbol was sent and committed last."""

    number: int
    sent: dict[str, float] = field(default_factory=dict)
    committed: dict[str, float] = field(default_factory=dict)
    on_time: float = 0.0  # when the last batch of the first two seconds was committed
    recorder: float = 0.0  # processor seconds of the writing thread


def run(bench: Workbench) -> Result:
    """Measure live minutes; the database stays in the workbench's `keep`, if that is set."""
    symbols = bench.scaled(SYMBOLS)
    with tempfile.TemporaryDirectory(prefix="feature_platform-") as temporary:
        Path(temporary).chmod(0o711)  # otherwise root's server does it, and logs it
        home = (bench.keep or Path(temporary)) / f"ten_thousand_{symbols}"
        with EmbeddedServer(home, conf=CONF) as server:
            own = Workbench(server.url(), bench.scale, bench.show)
            root = psutil.Process(_postmaster(home))
            with connect(server.url()) as connection:
                return _run(own, connection, root, symbols)


def _run(bench: Workbench, connection: Connection, root: psutil.Process, symbols: int) -> Result:
    small = bench.scale < 0.05
    length = 2.0 if small else 60.0
    count = 2 if small else bench.scaled(MINUTES, at_least=FEWEST_MINUTES)
    ready = READY if small else 0
    prepared = timed(lambda: _prepare(bench, connection, symbols, ready))
    lags: list[float] = []
    complete: list[float] = []
    minutes: list[Minute] = []
    with (
        running_worker(bench, connection) as worker,
        connect(bench.url) as recorder,
        connect(bench.url) as generator,
    ):
        own = (connection.info.backend_pid, generator.info.backend_pid)
        observer = Observer(connection, recorder, root, worker, own)
        feed = Feed(generator, recorder, symbols, length)
        looks = [observer.look()]
        if not small and (left := 60 - time.time() % 60) < START_SECONDS:
            time.sleep(left)
        newest = _newest(connection)
        first = max(_now() - ready, newest + 1)
        _load(connection, symbols, newest + 1, first, 1)
        bench.show(f"{count} live minutes, from {moment(first):%H:%M}")
        for minute in feed.live(range(first, first + count)):
            found = _await_rows(connection, minute, symbols)
            looks.append(observer.look())
            minutes.append(minute)
            lags += found.lags
            complete.append(found.complete)
            _show_minute(bench, minute, found, looks)
        _await_no_marks(connection)
    rows = 0
    for number in random.Random(0).sample(range(1, symbols + 1), min(SAMPLE, symbols)):
        rows += require_exact(connection, symbol=_name(number))
    live = {"first": moment(first), "last": moment(first + count - 1)}
    require(symbols * count, value(connection, "live_minutes", live), "live rows")
    return _result(symbols, length, prepared, looks, minutes, lags, complete, rows)


def _prepare(bench: Workbench, connection: Connection, symbols: int, ready: int) -> None:
    """Store the history up to now, and build its features; continue what an earlier run stored."""
    schema.apply(connection)
    if not value(connection, "generators"):
        create_generator(connection)
    newest = _newest(connection)
    if newest < 0:
        bench.show(f"{symbols} symbols, a year of thin history")
        dense = _now() - DENSE
        _load(connection, symbols, (dense - THIN) // THIN_STEP, dense // THIN_STEP, THIN_STEP)
        refresh(connection)
    settled = False
    while (first := max(_newest(connection) + 1, _now() - DENSE)) < (last := _now() - ready):
        bench.show(f"{last - first} full minutes")
        _load(connection, symbols, first, last, 1)
        refresh(connection)
        if not settled:
            connection.execute(queries["settle_views"])
            connection.execute(queries["checkpoint"])
        settled = True


def _load(connection: Connection, symbols: int, first: int, last: int, step: int) -> None:
    """Store bars of all symbols in the order of time, as a recorder does."""
    at_once = max(1, 500_000 // symbols)
    for start in range(first, last, at_once):
        connection.execute(
            queries["load_live_history"],
            {
                "symbols": symbols,
                "first": start,
                "last": min(start + at_once, last) - 1,
                "step": step,
            },
        )


class Feed:
    """Store the bars and heartbeats of live minutes, in a thread of its own.

    generator: the session that generates bars.
    recorder: the session that stores them.
    length: the seconds of a minute.
    """

    def __init__(
        self, generator: Connection, recorder: Connection, symbols: int, length: float
    ) -> None:
        self._generator = generator
        self._recorder = recorder
        self._symbols = list(range(1, symbols + 1))
        self._names = [_name(symbol) for symbol in self._symbols]
        self._length = length
        begin_heartbeats(recorder, dict.fromkeys(self._names, "simulated"))

    def live(self, numbers: range) -> Iterator[Minute]:
        """Write the bars of these minutes; yield each one shortly before the next one is over."""
        written: SimpleQueue[Minute | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self._write, numbers, written)
            writing.add_done_callback(lambda _: written.put(None))
            while (minute := written.get()) is not None:
                yield minute
            writing.result()

    def _write(self, numbers: range, written: SimpleQueue[Minute | None]) -> None:
        small = self._length < 60
        over = time.time() if small else (moment(numbers[0]) + timedelta(minutes=1)).timestamp()
        for number in numbers:
            minute = Minute(number)
            events = sorted(self._events(minute), key=lambda event: event[0])
            used = time.thread_time()
            for second, work in events:
                time.sleep(max(0.0, over + second * self._length / 60 - time.time()))
                work()
            minute.recorder = time.thread_time() - used
            written.put(minute)
            over += self._length

    def _events(self, minute: Minute) -> Iterator[tuple[float, Callable[[], object]]]:
        """Yield the work of a minute, and the seconds after its end at which it is due."""
        order = random.Random(minute.number).sample(self._symbols, len(self._symbols))
        shares = (LATE, CORRECTED, HOUR_OLD)
        counts = [max(1, round(share * len(order))) for share in shares]
        late, same, hour, half_day, _ = _split(order, [*counts, 1])
        store = partial(self._store, minute)
        on_time = order[len(late) :]
        for number, batch in enumerate(_shares(on_time, BATCHES), 1):
            yield number * BATCH_SECONDS, partial(store, self._bars(batch, minute.number))
        yield BATCHES * BATCH_SECONDS, partial(_note_time, minute)
        for second, batch in zip(LATE_SECONDS, _shares(late, len(LATE_SECONDS)), strict=True):
            yield second, partial(store, self._bars(batch, minute.number))
        for second, symbols, age in (
            (CORRECTION_SECONDS, same, 0),
            (OLD_SECONDS, hour, 60),
            (OLD_SECONDS, half_day, 720),
        ):
            bars = self._bars(symbols, minute.number - age)
            yield second, partial(store, [bar._replace(vol=bar.vol + 1.5) for bar in bars])
        for second in BEAT_SECONDS:
            yield second, self._beat
        yield LOOK_SECONDS, lambda: None

    def _bars(self, symbols: list[int], number: int) -> list[StreamBar]:
        rows = self._generator.execute(
            queries["bars_of_minute"], {"symbols": symbols, "minute": number}
        )
        return [StreamBar(*row) for row in rows]

    def _store(self, minute: Minute, bars: list[StreamBar]) -> None:
        now = time.time()
        store_stream(self._recorder, bars)
        names = [bar.symbol for bar in bars]
        minute.sent |= dict.fromkeys(names, now)
        minute.committed |= dict.fromkeys(names, time.time())

    def _beat(self) -> None:
        now = datetime.now(UTC)
        beats = [Heartbeat(name, "live", now, now, now, now) for name in self._names]
        write_heartbeats(self._recorder, beats, [])


class Observer:
    """Read the counters of the server, of the worker and of their processes.

    root: the first process of the server.
    own: the processes of sessions that only measure; they are not counted.
    """

    def __init__(
        self,
        connection: Connection,
        recorder: Connection,
        root: psutil.Process,
        worker: psutil.Popen,
        own: Sequence[int],
    ) -> None:
        self._connection = connection
        self._root = root
        self._worker = psutil.Process(worker.pid)
        self._kinds = dict.fromkeys(own, "") | {
            recorder.info.backend_pid: "the recorder's session",
            value(connection, "worker_session_pid"): "the worker's session",
        }

    def look(self) -> Look:
        """Read all counters now."""
        cpu: dict[str, float] = defaultdict(float)
        megabytes: dict[str, float] = defaultdict(float)
        for process in (self._root, *self._root.children(recursive=True), self._worker):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess), process.oneshot():
                kind = "the worker" if process == self._worker else self._kinds.get(process.pid)
                kind = "other processes of the server" if kind is None else kind
                full = process.memory_full_info()
                # With children that have ended, such as those of autovacuum.
                cpu[kind] += sum(process.cpu_times()[:4])
                megabytes[kind] += (getattr(full, "pss", 0) or full.rss) / _MEGABYTE
        for found in (cpu, megabytes):
            found.pop("", None)
        with self._connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(queries["live_counters"]).fetchone() or {}
            tables = cursor.execute(queries["live_tables"]).fetchall()
        server = {name: float(counter) for name, counter in row.items()}
        for table in tables:
            for counter in ("dead", "vacuums"):
                server[f"{counter} of {table['name']}"] = float(table[counter])
        return Look(dict(cpu), dict(megabytes), server)


@dataclass(frozen=True)
class Found:
    """The rows of a minute: the lag of each, and the seconds until those on time were stored."""

    lags: list[float]
    complete: float


def _await_rows(connection: Connection, minute: Minute, symbols: int) -> Found:
    """Wait for the rows of all symbols, computed from all that was sent."""
    deadline = time.monotonic() + PATIENCE
    while True:
        rows = connection.execute(
            queries["known_rows_of_minute"], {"bucket": moment(minute.number)}
        ).fetchall()
        known = {name: at for name, at in rows if at is not None and at >= minute.sent[name]}
        if len(known) == symbols:
            break
        if time.monotonic() > deadline:
            raise WrongResultError(f"{len(known)} of {symbols} rows in {PATIENCE:.0f} s")
        time.sleep(0.2)
    lags = [max(known[name] - minute.committed[name], 1e-4) for name in known]
    punctual = [at for name, at in known.items() if minute.committed[name] <= minute.on_time]
    return Found(lags, max(max(punctual) - minute.on_time, 1e-4))


def _await_no_marks(connection: Connection) -> None:
    deadline = time.monotonic() + PATIENCE
    while value(connection, "any_mark"):
        if time.monotonic() > deadline:
            raise WrongResultError("marks are left")
        time.sleep(0.2)


def _show_minute(bench: Workbench, minute: Minute, found: Found, looks: list[Look]) -> None:
    before, after = looks[-2:]
    spent = {kind: after.cpu[kind] - before.cpu.get(kind, 0.0) for kind in sorted(after.cpu)}
    grown = {name: after.server[name] - before.server.get(name, 0.0) for name in after.server}
    dead = {
        name.removeprefix("dead of "): number
        for name, number in after.server.items()
        if name.startswith("dead of ") and number > 0
    }
    bench.show(
        f"{moment(minute.number):%H:%M}: p50 {statistics.median(found.lags):.2f} s,"
        f" p99 {_p99(found.lags):.2f} s, complete {found.complete:.2f} s; processor:"
        f" {', '.join(f'{kind} {seconds:.2f}' for kind, seconds in spent.items())},"
        f" the recorder {minute.recorder:.2f} s; log {grown['log'] / _MEGABYTE:.1f} MB,"
        f" written {grown['written'] / _MEGABYTE:.1f} MB; dead rows:"
        f" {', '.join(f'{table} {number:.0f}' for table, number in dead.items())}"
    )


def _result(
    symbols: int,
    length: float,
    prepared: float,
    looks: list[Look],
    minutes: list[Minute],
    lags: list[float],
    complete: list[float],
    verified: int,
) -> Result:
    # The first minute is not counted: its look before is that of the start.
    cpu = {
        f"processor, {kind}": [
            max(after.cpu[kind] - before.cpu.get(kind, 0.0), 1e-3)
            for before, after in pairwise(looks[1:])
        ]
        for kind in sorted(looks[-1].cpu)
    }
    cpu["processor, the recorder's statements in Python"] = [
        minute.recorder for minute in minutes[1:]
    ]
    total = [sum(parts) for parts in zip(*cpu.values(), strict=True)]
    p50, p99 = statistics.median(lags), _p99(lags)
    return Result(
        ratios=[
            Ratio(
                f"{symbols} symbols: from commit to row, p99, of the promised 1 s",
                p99 / PROMISED,
                at_most=1,
            ),
            Ratio(
                f"{symbols} symbols: a live minute, share of a core",
                statistics.mean(total) / length,
            ),
        ],
        figures={
            "symbols": symbols,
            "minutes": len(minutes),
            "seconds to prepare": prepared,
            "from commit to row, p50 (ms)": 1000 * p50,
            "from commit to row, p99 (ms)": 1000 * p99,
            "processor s a minute": statistics.mean(total),
        }
        | _memory(looks)
        | _disk(looks)
        | _upkeep(looks)
        | {"rows verified": verified},
        seconds={"from commit to row": lags, "until all rows on time are stored": complete} | cpu,
    )


def _memory(looks: list[Look]) -> dict[str, float]:
    return {
        f"MB of memory, {kind}": max(look.megabytes.get(kind, 0.0) for look in looks)
        for kind in sorted(looks[-1].megabytes)
    }


def _disk(looks: list[Look]) -> dict[str, float]:
    """Return sizes at the end, and what a minute adds, in MB."""
    first, last = looks[1].server, looks[-1].server
    minutes = max(1, len(looks) - 2)
    sizes = ("bars, rows", "bars, indexes", "features, rows", "features, indexes", "all")
    found = {f"MB, {name}": last[name] / _MEGABYTE for name in sizes}
    for name in (*sizes, "log", "written"):
        found[f"growth a minute: {name} (MB)"] = (last[name] - first[name]) / _MEGABYTE / minutes
    return found


def _upkeep(looks: list[Look]) -> dict[str, float]:
    """Return checkpoints, the most dead rows at the end of a minute, and runs of autovacuum."""
    first, last = looks[0].server, looks[-1].server
    found = {
        f"{name} while it ran": last[name] - first[name]
        for name in ("checkpoints by time", "checkpoints by size", "full pages in the log")
    }
    for name in last:
        if name.startswith("dead of "):
            found[f"most dead rows: {name.removeprefix('dead of ')}"] = max(
                look.server.get(name, 0.0) for look in looks
            )
        elif name.startswith("vacuums of "):
            found[f"auto{name}"] = last[name] - first.get(name, 0.0)
    return {name: number for name, number in found.items() if number > 0}


def _p99(lags: list[float]) -> float:
    ordered = sorted(lags)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def _note_time(minute: Minute) -> None:
    minute.on_time = time.time()


def _split(symbols: list[int], counts: list[int]) -> list[list[int]]:
    """Cut a list into parts of these lengths, and the rest."""
    parts = []
    for count in counts:
        parts.append(symbols[:count])
        symbols = symbols[count:]
    return [*parts, symbols]


def _shares(symbols: list[int], count: int) -> list[list[int]]:
    """Cut a list into `count` parts of about the same length."""
    ends = [len(symbols) * number // count for number in range(count + 1)]
    return [symbols[ends[number] : ends[number + 1]] for number in range(count)]


def _name(symbol: int) -> str:
    return f"SYM{symbol:04d}/USDT"


def _now() -> int:
    """Return the number of the minute that is open now."""
    return (datetime.now(UTC) - FIRST) // timedelta(minutes=1)


def _newest(connection: Connection) -> int:
    """Return the number of the newest minute with features, -1 without any."""
    return value(connection, "newest_live_minute")


def _postmaster(home: Path) -> int:
    text = (home / "postgres" / "postmaster.pid").read_text(encoding="utf-8")
    return int(text.split("\n", 1)[0])
