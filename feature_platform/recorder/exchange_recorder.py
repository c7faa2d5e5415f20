"""The recorder of one exchange's symbols: a feed, a builder of bars, and a catch-up."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from feature_platform.bars import MINUTE_US, StreamBar, time_of
from feature_platform.exchange.client import Exchange, Patience
from feature_platform.exchange.stream import BackOff, Feed, Kind
from feature_platform.heartbeat import FeedState, Heartbeat, Outage
from feature_platform.recorder.bar_builder import BarBuilder, Heard, Refused, TradeSums
from feature_platform.recorder.catch_up import CatchUp
from feature_platform.recorder.writer import BarWriter
from feature_platform.settings import Settings

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


# Seconds of the wall clock between two warnings of rows of a symbol that are no bars.
_WARN_EVERY = 30.0


class ExchangeRecorder:
    """Build the bars of one exchange's symbols and give them to the writer, until stopped.

    Its rate limit, its bans, its connection and its heartbeats are its own: another exchange that
    is away does not delay it.

    name, symbols: the exchange, and its symbols as the settings have them.
    history: how far back a symbol without bars is fetched.
    kind: the stream to use; by default the best that the exchange has, bars rather than trades.
    """

    def __init__(
        self,
        name: str,
        symbols: tuple[str, ...],
        settings: Settings,
        writer: BarWriter,
        history: timedelta,
        *,
        kind: Kind | None = None,
        back_off: BackOff | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.name = name
        self._settings = settings
        self._clock = settings.clock
        self._writer = writer
        self._sums: TradeSums | None = None
        self._rows: list[Heard] = []
        self._heard: dict[str, int] = {}
        self._warned_at: dict[str, float] = {}
        self._last_heard = 0
        self._up_at = 0
        self._unheard_minute: int | None = None
        self._down_since: int | None = None
        self._down_reason = ""
        self._outages: list[Outage] = []
        now = self._clock.now()
        self._beats = {one: Heartbeat(one, "down", now) for one in symbols}
        self._unknown: frozenset[str] = frozenset()
        self._beaten_at = now - timedelta(seconds=_BEAT_SECONDS)
        self._stopping = threading.Event()
        self._stopped = asyncio.Event()
        self._feed = Feed(
            name,
            symbols,
            settings.url_of(name),
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
        self._exchange = Exchange.configured(
            settings, name, patience=patience or Patience(attempts=3, sleep=self._sleep_in_thread)
        )
        self._catch_up = CatchUp(
            self._exchange, history, self._clock, self._answered_in_thread, self._stopping
        )

    def stop(self) -> None:
        """Have `run` end; by its loop only."""
        self._stopping.set()
        self._stopped.set()
        self._catch_up.nudge()
        self._exchange.interrupt()

    def contest(self, minutes: Sequence[tuple[str, int]]) -> None:
        """Ask the exchange again for minutes, each a symbol and a `ts`; from any thread."""
        self._catch_up.again(minutes)

    async def run(self) -> None:
        """Record until `stop`, and give the writer all that is left.

        Raises UserError where the exchange has none of the symbols.
        """
        self._loop = asyncio.get_running_loop()
        _log.info("%s: listening to %s of %d symbols", *self._described())
        asking = asyncio.create_task(asyncio.to_thread(self._catch_up.run))
        listening = asyncio.create_task(self._listen())
        handing = asyncio.create_task(self._hand_over())
        tasks = [asking, listening, handing]
        try:
            # None of them ends by itself before it is stopped, unless it fails.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop()
            listening.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._hand_out(ending=True)
            self._beat("stopped")
            self._exchange.close()
        for task in (asking, handing, listening):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def fail(self, reason: str) -> None:
        """Write heartbeats that say why none of the symbols is recorded."""
        for beat in self._beats.values():
            beat.last_error, beat.last_error_at = reason, self._clock.now()
        self._unknown = frozenset()
        self._beat("down")

    def on_row(self, symbol: str, row: Sequence[Any], *, final: bool | None) -> None:
        """Take what the feed heard of a minute."""
        self._hear(symbol)
        self._rows.append(Heard(symbol, row, self._last_heard, final))

    def on_trade(self, symbol: str, trade: dict[str, Any]) -> None:
        """Take a trade that the feed heard."""
        self._hear(symbol)
        when = trade.get("timestamp")
        if isinstance(when, int) and when * 1000 > self._last_heard + MINUTE_US:
            self._refuse(Refused(symbol, "a trade of the future", str(trade)[:200]))
            return
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
            self._catch_up.since_newest(self._beats, time_of(now - now % MINUTE_US))
        else:
            self._catch_up.since(self._beats, time_of(self._down_since))
            self._outages.append(
                Outage(time_of(self._down_since), time_of(now), self._down_reason, self.name)
            )
        self._turn("catching_up", connected_at=time_of(now))
        _log.info("%s: connected: asking for the missed minutes", self.name)

    def on_unknown(self, unknown: Mapping[str, str]) -> None:
        """Keep symbols that the exchange does not have out, and their heartbeats `down`."""
        self._unknown = frozenset(unknown)
        for symbol, reason in unknown.items():
            beat = self._beats[symbol]
            if beat.last_error != reason:
                _log.error("%s: it is not recorded, the others are", reason)
            beat.last_error, beat.last_error_at = reason, self._clock.now()

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
            self._refuse(refused)
        if due.bars:
            self._note_newest(due.bars)
            self._writer.put(due.bars)
        if due.doubts:
            self._catch_up.again(due.doubts)

    def _refuse(self, refused: Refused) -> None:
        """Count a row that is no bar; of many of a symbol, log one in a while."""
        beat = self._beats[refused.symbol]
        beat.rejected += 1
        beat.last_error = f"no bar: {refused.reason}"
        beat.last_error_at = self._clock.now()
        now = time.monotonic()
        if now - self._warned_at.get(refused.symbol, -_WARN_EVERY) >= _WARN_EVERY:
            self._warned_at[refused.symbol] = now
            _log.warning("%s: no bar: %s: %s (%d so far)", *refused, beat.rejected)

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
            at = time_of(bar.ts)
            beat.bar_at = at if beat.bar_at is None else max(at, beat.bar_at)

    def _beat(self, state: FeedState | None = None) -> None:
        """Have heartbeats written."""
        self._beaten_at = self._clock.now()
        if state is not None:
            self._turn(state)
        for symbol, heard in self._heard.items():
            self._beats[symbol].heard_at = time_of(heard)
        outages, self._outages = self._outages, []
        beats = [Heartbeat(**vars(beat)) for beat in self._beats.values()]
        self._writer.beat(beats, outages)

    def _turn(self, state: FeedState, connected_at: datetime | None = None) -> None:
        for beat in self._beats.values():
            if beat.symbol in self._unknown and state != "stopped":
                continue
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
            known = [one for one in self._beats.values() if one.symbol not in self._unknown]
            if all(one.state == "live" for one in known):
                _log.info("%s: live: %d symbols, and no minute is missing", self.name, len(known))
                self._beat()

    def _described(self) -> tuple[str, str, int]:
        return self.name, self._feed.kind, len(self._beats)

    def _hear(self, symbol: str) -> None:
        self._last_heard = self._heard[symbol] = self._now()

    def _now(self) -> int:
        return self._clock.milliseconds() * 1000

    def _sleep_in_thread(self, seconds: float) -> None:
        self._stopping.wait(seconds)
