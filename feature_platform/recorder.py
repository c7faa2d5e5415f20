"""The recorder: the process that writes an exchange's bars as they are closed."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from feature_platform._bar_builder import BarBuilder, Heard, TradeSums
from feature_platform._bar_writer import BarWriter
from feature_platform._catch_up import CatchUp
from feature_platform._feed import BackOff, Feed, Kind
from feature_platform._spool import Spool
from feature_platform.bars import MINUTE_US, StreamBar, moment
from feature_platform.database import connect
from feature_platform.errors import UserError
from feature_platform.exchange import Exchange, Patience
from feature_platform.heartbeat import FeedState, Heartbeat, Outage
from feature_platform.schema import prepare
from feature_platform.settings import PREFIX, Settings, get_settings

_log = logging.getLogger(__name__)

# How often to look for what is due beside the moments when minutes are, in seconds of the wall.
_LOOK_SECONDS = 0.1
# Into the minute, when a minute that is asked for has been published.
_ASK_SECOND = 1.0
# How long after the first minute of a connection something was said of every market, usually.
_ALL_SUBSCRIBED = 5_000_000
# How long to wait for what the stream says last of a minute, after its grace, before the exchange
# is asked: in seconds of the clock, and of the wall's, which messages take to arrive.
_LAST_CALL = 2.0
_LAST_CALL_WALL = 0.25
# How often to write heartbeats, in seconds of the clock.
_BEAT_SECONDS = 10


class Recorder:
    """Write the bars of all configured markets as soon as their minutes are over, until stopped.

    history: how far back a market without bars is asked for.
    kind: what to listen to; by default what the exchange has, bars rather than trades.
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
        self._clock = settings.clock
        self._history = history
        self._sums: TradeSums | None = None
        self._rows: list[Heard] = []
        self._heard: dict[str, int] = {}
        self._last_heard = 0
        self._up_at = 0
        self._unheard_minute: int | None = None
        self._down_since: int | None = None
        self._down_reason = ""
        self._outages: list[Outage] = []
        now = self._clock.now()
        self._beats = {name: Heartbeat(name, "down", now) for name in settings.symbols}
        self._beaten_at = now - timedelta(seconds=_BEAT_SECONDS)
        self._stopping = threading.Event()
        self._stopped = asyncio.Event()
        self._feed = Feed(
            settings.exchange,
            settings.symbols,
            settings.exchange_url,
            self,
            clock=self._clock,
            stall=settings.recorder_stall,
            kind=kind,
            back_off=back_off,
        )
        self._builder = BarBuilder(
            round(settings.recorder_grace * 1_000_000),
            round(max(_LAST_CALL, _LAST_CALL_WALL * self._clock.speed) * 1_000_000),
            closers=False if self._feed.kind == "trades" else None,
        )
        self._spool = Spool(_directory(settings) / "spool.jsonl")
        self._writer = BarWriter(
            self._spool,
            settings.symbols,
            in_memory=settings.recorder_memory,
            contested=lambda minutes: self._catch_up.again(minutes),
        )
        self._exchange = Exchange.configured(
            settings, patience=patience or Patience(attempts=3, sleep=self._sleep_in_thread)
        )
        self._catch_up = CatchUp(
            self._exchange, history, self._clock, self._answered_in_thread, self._stopping
        )

    def stop(self) -> None:
        """Ask the recorder to end when all that it has is stored; by its loop only."""
        self._stopping.set()
        self._stopped.set()
        self._catch_up.nudge()

    async def run(self) -> bool:
        """Record until `stop`; return whether everything that was heard has been kept.

        Raises UserError where the exchange refuses.
        """
        self._loop = asyncio.get_running_loop()
        _log.info("listening to %s", self._feed.kind)
        writing = asyncio.create_task(asyncio.to_thread(self._writer.run))
        asking = asyncio.create_task(asyncio.to_thread(self._catch_up.run))
        listening = asyncio.create_task(self._listen())
        handing = asyncio.create_task(self._hand_over())
        try:
            # None of them ends by itself before it is asked to, unless it fails.
            await asyncio.wait(
                [writing, asking, listening, handing], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            self.stop()
            listening.cancel()
            await asyncio.gather(listening, handing, return_exceptions=True)
            self._hand_out(ending=True)
            self._beat("stopped")
            self._writer.stop()
            await asyncio.gather(writing, asking, return_exceptions=True)
            self._spool.close()
            self._exchange.close()
        for task in (writing, asking, handing, listening):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return writing.result()

    def on_row(self, symbol: str, row: Sequence[Any], *, final: bool | None) -> None:
        """Take what the feed heard of a minute."""
        self._hear(symbol)
        self._rows.append(Heard(symbol, row, self._last_heard, final))

    def on_trade(self, symbol: str, trade: dict[str, Any]) -> None:
        """Take a trade that the feed heard."""
        self._hear(symbol)
        row = None if self._sums is None else self._sums.add(symbol, trade)
        if row is not None:
            self._rows.append(Heard(symbol, row, self._last_heard))

    def on_up(self) -> None:
        """Take note that the feed hears all from now on, and ask for what it has not."""
        now = self._now()
        self._last_heard = self._up_at = now
        self._unheard_minute = now - now % MINUTE_US
        self._sums = TradeSums(-(-now // MINUTE_US) * MINUTE_US)
        if self._down_since is None:
            self._catch_up.since_newest(self._beats, moment(now - now % MINUTE_US))
        else:
            self._catch_up.since(self._beats, moment(self._down_since))
            self._outages.append(Outage(moment(self._down_since), moment(now), self._down_reason))
        self._turn("catching_up", connected_at=moment(now))
        _log.info("connected: asking for what was missed")

    def on_down(self, reason: str) -> None:
        """Take note that the feed has heard nothing since the last message."""
        self._hand_out()
        self._builder.forget_open()
        self._down_since, self._down_reason = self._last_heard, reason
        for beat in self._beats.values():
            beat.last_error, beat.last_error_at = reason, self._clock.now()
        self._turn("down")

    async def _listen(self) -> None:
        if self._feed.kind == "minutes":
            await self._ask_each_minute()
        else:
            await self._feed.run()

    async def _ask_each_minute(self) -> None:
        """Ask for each minute over REST, of an exchange that has no stream."""
        self.on_up()
        while True:
            await asyncio.sleep(self._clock.wall_seconds_to_minute(_ASK_SECOND))
            self._catch_up.since(self._beats, self._clock.now() - timedelta(minutes=1))

    async def _hand_over(self) -> None:
        """Hand out what is due as soon as it is."""
        while not self._stopping.is_set():
            due = self._builder.next_due()
            wait = _LOOK_SECONDS
            if due is not None and due > self._now():
                wait = min(wait, self._clock.wall_seconds((due - self._now()) / 1_000_000))
            try:
                await asyncio.wait_for(self._stopped.wait(), wait)
            except TimeoutError:
                self._hand_out()
                self._ask_for_unheard()
                if (self._clock.now() - self._beaten_at).total_seconds() >= _BEAT_SECONDS:
                    self._beat()

    def _hand_out(self, *, ending: bool = False) -> None:
        """Give bars that are due to the writer, and doubts to whoever asks the exchange.

        ending: nothing more will come, so that no grace is given.
        """
        rows, self._rows = self._rows, []
        if rows:
            self._builder.say(rows)
        grace = round(self._settings.recorder_grace * 1_000_000) if ending else 0
        due = self._builder.take(self._now() + grace, self._last_heard)
        for refused in due.refused:
            beat = self._beats[refused.symbol]
            beat.refused += 1
            beat.last_error = f"no bar: {refused.reason}"
            beat.last_error_at = self._clock.now()
            _log.warning("%s: no bar: %s: %s", *refused)
        if due.bars:
            self._note_newest(due.bars)
            self._writer.put(due.bars)
        if due.doubts:
            self._catch_up.again(due.doubts)

    def _ask_for_unheard(self) -> None:
        """Ask for the first minute of a connection of markets that were not heard in it.

        To subscribe to many takes seconds, and the minute may have ended within them.
        """
        minute = self._unheard_minute
        if minute is None or self._now() < minute + MINUTE_US + _ALL_SUBSCRIBED:
            return
        self._unheard_minute = None
        unheard = [name for name in self._beats if self._heard.get(name, 0) < self._up_at]
        self._catch_up.again((name, minute) for name in unheard)

    def _note_newest(self, bars: Sequence[StreamBar]) -> None:
        for bar in bars:
            beat = self._beats[bar.symbol]
            at = moment(bar.ts)
            beat.bar_at = at if beat.bar_at is None else max(at, beat.bar_at)

    def _beat(self, state: FeedState | None = None) -> None:
        """Have heartbeats written."""
        self._beaten_at = self._clock.now()
        if state is not None:
            self._turn(state)
        for symbol, heard in self._heard.items():
            self._beats[symbol].heard_at = moment(heard)
        outages, self._outages = self._outages, []
        beats = [Heartbeat(**vars(beat)) for beat in self._beats.values()]
        self._writer.beat(beats, outages)

    def _turn(self, state: FeedState, connected_at: datetime | None = None) -> None:
        for beat in self._beats.values():
            beat.state, beat.state_at, beat.connected_at = state, self._clock.now(), connected_at
        self._beaten_at -= timedelta(seconds=_BEAT_SECONDS)

    def _answered_in_thread(self, symbol: str, error: str | None) -> None:
        self._loop.call_soon_threadsafe(self._answered, symbol, error)

    def _answered(self, symbol: str, error: str | None) -> None:
        """Take note of what became of asking the exchange for what was missed."""
        beat = self._beats[symbol]
        now = self._clock.now()
        if error is None and self._feed.kind == "minutes":
            self._hear(symbol)
        if error is not None:
            beat.last_error, beat.last_error_at = error, now
            if beat.state == "live":
                beat.state, beat.state_at = "catching_up", now
        elif beat.state == "catching_up":
            beat.state, beat.state_at = "live", now
            if all(one.state == "live" for one in self._beats.values()):
                _log.info("live: %d markets, and nothing is missing", len(self._beats))
                self._beat()

    def _hear(self, symbol: str) -> None:
        self._last_heard = self._heard[symbol] = self._now()

    def _now(self) -> int:
        return self._clock.milliseconds() * 1000

    def _sleep_in_thread(self, seconds: float) -> None:
        self._stopping.wait(seconds)


def run_recorder(history: timedelta) -> bool:
    """Run a recorder in this process until SIGTERM or SIGINT.

    Returns whether everything that was heard has been kept, in the database or on disk.
    Raises UserError where a setting is wrong, the database cannot be used, or another recorder
    of the same home runs.
    """
    settings = get_settings()
    with _the_one(settings):
        with connect() as connection:
            prepare(connection)
        return asyncio.run(_run(settings, history))


async def _run(settings: Settings, history: timedelta) -> bool:
    recorder = Recorder(settings, history)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        _log.info("stopping")
        recorder.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    _log.info("recording %d markets of %s", len(settings.symbols), settings.exchange)
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
                f"another recorder runs in {settings.home}: one records all markets of"
                f" {PREFIX}SYMBOLS; set {PREFIX}HOME for another"
            ) from None
        yield
    finally:
        os.close(lock)
