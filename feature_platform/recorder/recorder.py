"""The recorder: the process that writes exchanges' bars as they are closed."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from feature_platform.database import connect
from feature_platform.errors import UserError
from feature_platform.exchange.client import Patience
from feature_platform.exchange.stream import BackOff, Kind
from feature_platform.origin import exchange_settings
from feature_platform.recorder.exchange_recorder import ExchangeRecorder
from feature_platform.recorder.spool import Spool
from feature_platform.recorder.writer import BarWriter
from feature_platform.schema import prepare
from feature_platform.settings import PREFIX, Settings, get_settings
from feature_platform.symbols import exchange_of

_log = logging.getLogger(__name__)


class Recorder:
    """Write the bars of all configured symbols as soon as their minutes are over, until stopped.

    Each exchange is recorded by itself; one writer stores the bars of all.
    history: how far back a symbol without bars is fetched.
    kind: the stream to use; by default the best that an exchange has, bars rather than trades.
    """

    def __init__(
        self,
        settings: Settings,
        history: timedelta,
        *,
        kind: Kind | None = None,
        back_off: BackOff | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._settings = settings
        exchanges = settings.by_exchange()
        self._spool = Spool(_directory(settings) / "spool.jsonl")
        self._writer = BarWriter(
            self._spool,
            {symbol: name for name, symbols in exchanges.items() for symbol in symbols},
            in_memory=settings.recorder_memory,
            conflicting=self._contest,
        )
        self._parts = {
            name: ExchangeRecorder(
                name,
                symbols,
                settings,
                self._writer,
                history,
                kind=kind,
                back_off=back_off,
                patience=patience,
            )
            for name, symbols in exchanges.items()
        }
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Have `run` end when all that the recorder has is stored; by its loop only."""
        self._stopped.set()
        for part in self._parts.values():
            part.stop()

    async def run(self) -> bool:
        """Record until `stop`; return whether all received bars were stored or are on disk.

        An exchange that has none of its symbols stops no other. Raises UserError where it is the
        only one.
        """
        writing = asyncio.create_task(asyncio.to_thread(self._writer.run))
        recording = {asyncio.create_task(part.run()): part for part in self._parts.values()}
        stopping = asyncio.create_task(self._stopped.wait())
        error: BaseException | None = None
        try:
            # No task ends by itself before it is stopped, unless it fails.
            while error is None and not (stopping.done() or writing.done()):
                running = [task for task in recording if not task.done()]
                await asyncio.wait(
                    [writing, stopping, *running], return_when=asyncio.FIRST_COMPLETED
                )
                error = self._failure_of(recording)
        finally:
            self.stop()
            await asyncio.gather(*recording, stopping, return_exceptions=True)
            self._writer.stop()
            await asyncio.gather(writing, return_exceptions=True)
            self._spool.close()
        if error is not None:
            raise error
        return writing.result()

    def _failure_of(
        self, recording: dict[asyncio.Task[None], ExchangeRecorder]
    ) -> BaseException | None:
        """Return the error that ends the recorder; of one exchange of several, only log it."""
        for task, part in list(recording.items()):
            error = task.exception() if task.done() else None
            if error is None:
                continue
            if not isinstance(error, UserError) or len(recording) == 1:
                return error
            _log.error("%s: not recorded, the other exchanges are: %s", part.name, error)
            part.fail(str(error))
            del recording[task]
        return None

    def _contest(self, minutes: Sequence[tuple[str, int]]) -> None:
        for symbol, ts in minutes:
            name = exchange_of(symbol, self._settings.exchange)
            if name in self._parts:  # what is on disk may be of an earlier setting
                self._parts[name].contest([(symbol, ts)])


def run_recorder(history: timedelta) -> bool:
    """Run a recorder in this process until SIGTERM or SIGINT.

    Returns whether all received bars were stored or are on disk.
    Raises UserError where a setting is wrong, the database cannot be used, or another recorder
    of the same home runs.
    """
    settings = get_settings()
    with _the_one(settings):
        with connect() as connection:
            prepare(connection)
            settings = exchange_settings(connection)
        return asyncio.run(_run(settings, history))


async def _run(settings: Settings, history: timedelta) -> bool:
    recorder = Recorder(settings, history)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        _log.info("stopping")
        recorder.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    exchanges = settings.by_exchange()
    _log.info("recording %d symbols of %s", len(settings.symbols), ", ".join(exchanges))
    kept = await recorder.run()
    _log.info("stopped")
    return kept


def _directory(settings: Settings) -> Path:
    """Return where a recorder keeps what is its own."""
    return settings.home / "recorder"


@contextmanager
def _the_one(settings: Settings) -> Iterator[None]:
    """Be the one recorder of this home, whose spool is nobody else's."""
    directory = _directory(settings)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another recorder runs in {settings.home}: one records all symbols of"
                f" {PREFIX}SYMBOLS; set {PREFIX}HOME for another"
            ) from None
        yield
    finally:
        os.close(lock)
