"""The recorder process: write the closed bars of all configured symbols."""

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
    """Write the bars of all configured symbols when their minutes end, until stopped.

    Each exchange has an `ExchangeRecorder`; one writer stores the bars of all.
    history: how far back a symbol without bars is fetched.
    kind: the kind of stream to use; by default bars, or trades where an exchange streams no bars.
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
            conflicting=self._fetch_again,
        )
        self._recorders = {
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
        """End `run` once all bars are stored or on disk; from its event loop only."""
        self._stopped.set()
        for recorder in self._recorders.values():
            recorder.stop()

    async def run(self) -> bool:
        """Record until `stop`; return whether all received bars were stored or are on disk.

        Raises UserError where the only exchange has none of its symbols; one of several stops by
        itself.
        """
        writing = asyncio.create_task(asyncio.to_thread(self._writer.run))
        recording = {
            asyncio.create_task(recorder.run()): recorder for recorder in self._recorders.values()
        }
        stopping = asyncio.create_task(self._stopped.wait())
        error: BaseException | None = None
        try:
            # A task that ends before `stop` has failed.
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
        """Return the error that ends the recorder; log an error of one exchange of several."""
        for task, recorder in list(recording.items()):
            error = task.exception() if task.done() else None
            if error is None:
                continue
            if not isinstance(error, UserError) or len(recording) == 1:
                return error
            _log.error("%s is not recorded, the other exchanges are: %s", recorder.name, error)
            recorder.fail(str(error))
            del recording[task]
        return None

    def _fetch_again(self, minutes: Sequence[tuple[str, int]]) -> None:
        for symbol, ts in minutes:
            name = exchange_of(symbol, self._settings.exchange)
            if name in self._recorders:  # bars on disk may be of earlier settings
                self._recorders[name].fetch_again([(symbol, ts)])


def run_recorder(history: timedelta) -> bool:
    """Run a recorder in this process until SIGTERM or SIGINT.

    history: the time before now whose bars are fetched for a symbol without bars.
    Returns whether all received bars were stored or are on disk.
    Raises UserError where a setting is wrong, the database cannot be used, or another recorder
    runs in the same home.
    """
    settings = get_settings()
    with _locked(settings):
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
    complete = await recorder.run()
    _log.info("stopped")
    return complete


def _directory(settings: Settings) -> Path:
    """Return the directory of a recorder's files."""
    return settings.home / "recorder"


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Lock this home, whose spool one process uses. Raises UserError where one runs already."""
    directory = _directory(settings)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another recorder runs in {settings.home}: it records all symbols of"
                f" {PREFIX}SYMBOLS; set another {PREFIX}HOME to run a second one"
            ) from None
        yield
    finally:
        os.close(lock)
