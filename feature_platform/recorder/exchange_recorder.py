"""The recorder of one exchange: its stream, bar builder, REST fetches and heartbeats."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from feature_platform.bar_rules import MINUTE_US
from feature_platform.bars import StreamBar, time_of
from feature_platform.exchange.client import Exchange, Patience
from feature_platform.exchange.stream import BackOff, Kind, Stream
from feature_platform.heartbeat import Heartbeat, Outage, StreamState
from feature_platform.recorder.bar_builder import BarBuilder, RejectedUpdate, Update
from feature_platform.recorder.catch_up import CatchUp
from feature_platform.recorder.trade_bars import TradeSums
from feature_platform.recorder.writer import BarWriter
from feature_platform.settings import Settings

_log = logging.getLogger(__name__)

# The longest time between two polls of the bar builder, in wall seconds.
_POLL_SECONDS = 0.1
# The second of the minute at which an exchange without a stream has published the last minute.
_FETCH_SECOND = 1.0
# How long after the first minute of a connection each symbol has usually had an update.
_ALL_SUBSCRIBED = 5_000_000
# How long after its grace a minute without a closed bar waits for one before it is fetched: in
# seconds of the clock, and in wall seconds, because messages take that time to arrive.
_CONFIRM_SECONDS = 2.0
_CONFIRM_WALL_SECONDS = 0.25
# The time between two heartbeats, in seconds of the clock.
_BEAT_SECONDS = 10

# The time between two warnings about rejected updates of a symbol, in wall seconds.
_WARN_EVERY = 30.0


class ExchangeRecorder:
    """Build the bars of one exchange's symbols and pass them to the writer, until stopped.

    Each exchange has its own rate limit, bans, connection and heartbeats: an exchange that does not
    answer does not delay another.

    name, symbols: the exchange, and its symbols as in the settings.
    history: the time before now for which a symbol without bars is fetched.
    kind: the kind of stream to use; by default bars, or trades where the exchange streams no bars.
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
        self._updates: list[Update] = []
        self._updated_at: dict[str, int] = {}
        self._warned_at: dict[str, float] = {}
        self._last_message_at = 0
        self._connected_at = 0
        # Since the connection began: whether any valid update arrived, and the symbols without
        # missing minutes.
        self._updating = False
        self._caught_up: set[str] = set()
        self._first_minute: int | None = None
        self._down_since: int | None = None
        self._down_reason = ""
        self._outages: list[Outage] = []
        now = self._clock.now()
        self._beats = {one: Heartbeat(one, "down", now) for one in symbols}
        self._unknown: frozenset[str] = frozenset()
        self._beaten_at = now - timedelta(seconds=_BEAT_SECONDS)
        self._stopping = threading.Event()
        self._stopped = asyncio.Event()
        self._stream = Stream(
            name,
            symbols,
            settings.url_of(name),
            self,
            clock=self._clock,
            stall=settings.recorder_stall,
            kind=kind,
            back_off=back_off,
        )
        confirm_after = max(_CONFIRM_SECONDS, _CONFIRM_WALL_SECONDS * self._clock.speed)
        self._builder = BarBuilder(
            round(settings.recorder_grace * 1_000_000),
            round(confirm_after * 1_000_000),
            sends_closed_bars=False if self._stream.kind == "trades" else None,
        )
        self._exchange = Exchange.configured(
            settings, name, patience=patience or Patience(attempts=3, sleep=self._sleep_in_thread)
        )
        self._catch_up = CatchUp(
            self._exchange, history, self._clock, self._on_fetched_in_thread, self._stopping
        )

    def stop(self) -> None:
        """End `run`; from its event loop only."""
        self._stopping.set()
        self._stopped.set()
        self._catch_up.wake()
        self._exchange.interrupt()

    def fetch_again(self, minutes: Sequence[tuple[str, int]]) -> None:
        """Fetch minutes over REST, each a symbol and a `ts`; from any thread."""
        self._catch_up.fetch_again(minutes)

    async def run(self) -> None:
        """Record until `stop`, and pass the remaining bars to the writer.

        Raises UserError where the exchange has none of the symbols.
        """
        self._loop = asyncio.get_running_loop()
        _log.info("%s: stream of %s of %d symbols", self.name, self._stream.kind, len(self._beats))
        fetching = asyncio.create_task(asyncio.to_thread(self._catch_up.run))
        streaming = asyncio.create_task(self._run_stream())
        polling = asyncio.create_task(self._poll_until_stopped())
        tasks = [fetching, streaming, polling]
        try:
            # A task that ends before `stop` has failed.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop()
            streaming.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._poll(ending=True)
            self._beat("stopped")
            self._exchange.close()
        for task in (fetching, polling, streaming):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def fail(self, reason: str) -> None:
        """Write heartbeats with the reason why no symbol of the exchange is recorded."""
        for beat in self._beats.values():
            beat.last_error, beat.last_error_at = reason, self._clock.now()
        self._unknown = frozenset()
        self._beat("down")

    def on_bar(self, symbol: str, row: Sequence[Any], *, final: bool | None) -> None:
        """Add an update of a bar."""
        self._note_update(symbol)
        self._updates.append(Update(symbol, row, self._last_message_at, final))

    def on_trade(self, symbol: str, trade: dict[str, Any]) -> None:
        """Add a trade."""
        self._note_update(symbol)
        when = trade.get("timestamp")
        if isinstance(when, int) and when * 1000 > self._last_message_at + MINUTE_US:
            self._reject(RejectedUpdate(symbol, "a trade of the future", str(trade)[:200]))
            return
        row = None if self._sums is None else self._sums.add(symbol, trade)
        if row is not None:
            self._updates.append(Update(symbol, row, self._last_message_at))

    def on_connected(self) -> None:
        """Begin to build bars, and fetch the minutes since the last connection."""
        now = self._now()
        self._last_message_at = self._connected_at = now
        self._first_minute = now - now % MINUTE_US
        self._updating = False
        self._caught_up.clear()
        self._sums = TradeSums(-(-now // MINUTE_US) * MINUTE_US)
        if self._down_since is None:
            self._catch_up.fetch_since_newest(self._beats, time_of(now - now % MINUTE_US))
        else:
            self._catch_up.fetch_since(self._beats, time_of(self._down_since))
            self._outages.append(
                Outage(time_of(self._down_since), time_of(now), self._down_reason, self.name)
            )
        self._set_state("catching_up", connected_at=time_of(now))
        _log.info("%s: connected; fetching missed minutes", self.name)

    def on_unknown(self, unknown: Mapping[str, str]) -> None:
        """Leave the heartbeats of symbols that the exchange does not have `down`."""
        self._unknown = frozenset(unknown)
        for symbol, reason in unknown.items():
            beat = self._beats[symbol]
            if beat.last_error != reason:
                _log.error("%s: it is not recorded, the others are", reason)
            beat.last_error, beat.last_error_at = reason, self._clock.now()

    def on_disconnected(self, reason: str) -> None:
        """Discard the pending minutes; the outage began with the last message."""
        self._poll()
        self._builder.discard_pending()
        self._down_since, self._down_reason = self._last_message_at, reason
        for beat in self._beats.values():
            beat.last_error, beat.last_error_at = reason, self._clock.now()
        self._set_state("down")

    async def _run_stream(self) -> None:
        if self._stream.kind == "minutes":
            await self._fetch_each_minute()
        else:
            await self._stream.run()

    async def _fetch_each_minute(self) -> None:
        """Fetch each minute over REST, for an exchange without a stream."""
        self.on_connected()
        while True:
            await asyncio.sleep(self._clock.wall_seconds_to_minute(_FETCH_SECOND))
            self._catch_up.fetch_since(self._beats, self._clock.now() - timedelta(minutes=1))

    async def _poll_until_stopped(self) -> None:
        """Poll the builder as soon as a minute is due, and write heartbeats."""
        while not self._stopping.is_set():
            due = self._builder.next_due()
            wait = _POLL_SECONDS
            if due is not None and due > self._now():
                wait = min(wait, self._clock.wall_seconds((due - self._now()) / 1_000_000))
            try:
                await asyncio.wait_for(self._stopped.wait(), wait)
            except TimeoutError:
                self._poll()
                self._fetch_unsubscribed()
                if (self._clock.now() - self._beaten_at).total_seconds() >= _BEAT_SECONDS:
                    self._beat()

    def _poll(self, *, ending: bool = False) -> None:
        """Pass ready bars to the writer, and fetch unconfirmed minutes over REST.

        ending: no update will follow, so minutes have no grace.
        """
        updates, self._updates = self._updates, []
        if updates:
            self._builder.add(updates)
        grace = round(self._settings.recorder_grace * 1_000_000) if ending else 0
        ready = self._builder.poll(self._now() + grace, self._last_message_at)
        for rejected in ready.rejected:
            self._reject(rejected)
        if len(updates) > len(ready.rejected):
            self._note_valid_update()
        if ready.bars:
            self._note_newest(ready.bars)
            self._writer.put(ready.bars)
        if ready.unconfirmed:
            self._catch_up.fetch_again(ready.unconfirmed)

    def _reject(self, rejected: RejectedUpdate) -> None:
        """Count a rejected update; log at most one of a symbol in 30 seconds."""
        beat = self._beats[rejected.symbol]
        beat.rejected += 1
        beat.last_error = f"not a valid bar: {rejected.reason}"
        beat.last_error_at = self._clock.now()
        now = time.monotonic()
        if now - self._warned_at.get(rejected.symbol, -_WARN_EVERY) >= _WARN_EVERY:
            self._warned_at[rejected.symbol] = now
            _log.warning("%s: not a valid bar: %s: %s (%d so far)", *rejected, beat.rejected)

    def _fetch_unsubscribed(self) -> None:
        """Fetch the first minute of a connection for symbols without an update since then.

        Subscribing to many symbols takes seconds, and the minute may have ended meanwhile.
        """
        minute = self._first_minute
        if minute is None or self._now() < minute + MINUTE_US + _ALL_SUBSCRIBED:
            return
        self._first_minute = None
        missing = [one for one in self._beats if self._updated_at.get(one, 0) < self._connected_at]
        self._catch_up.fetch_again((symbol, minute) for symbol in missing)

    def _note_newest(self, bars: Sequence[StreamBar]) -> None:
        for bar in bars:
            beat = self._beats[bar.symbol]
            at = time_of(bar.ts)
            beat.bar_at = at if beat.bar_at is None else max(at, beat.bar_at)

    def _beat(self, state: StreamState | None = None) -> None:
        """Pass heartbeats to the writer."""
        self._beaten_at = self._clock.now()
        if state is not None:
            self._set_state(state)
        for symbol, updated_at in self._updated_at.items():
            self._beats[symbol].update_at = time_of(updated_at)
        outages, self._outages = self._outages, []
        beats = [Heartbeat(**vars(beat)) for beat in self._beats.values()]
        self._writer.beat(beats, outages)

    def _set_state(self, state: StreamState, connected_at: datetime | None = None) -> None:
        for beat in self._beats.values():
            if beat.symbol in self._unknown and state != "stopped":
                continue
            beat.state, beat.state_at, beat.connected_at = state, self._clock.now(), connected_at
        self._beaten_at -= timedelta(seconds=_BEAT_SECONDS)

    def _on_fetched_in_thread(self, symbol: str, error: str | None) -> None:
        self._loop.call_soon_threadsafe(self._on_fetched, symbol, error)

    def _on_fetched(self, symbol: str, error: str | None) -> None:
        """Set a symbol's state by the result of a fetch of its missed minutes."""
        beat = self._beats[symbol]
        if error is not None:
            beat.last_error, beat.last_error_at = error, self._clock.now()
            self._caught_up.discard(symbol)
            if beat.state == "live":
                beat.state, beat.state_at = "catching_up", self._clock.now()
            return
        self._caught_up.add(symbol)
        if self._stream.kind == "minutes":
            self._note_update(symbol)
            self._note_valid_update()
        if self._updating:
            self._set_live()

    def _set_live(self) -> None:
        """Set the state of the symbols without missing minutes to `live`.

        Not before the first valid update of the connection: an exchange may send only messages
        that cannot be used.
        """
        ready = [self._beats[one] for one in self._caught_up]
        if not (now_live := [beat for beat in ready if beat.state == "catching_up"]):
            return
        for beat in now_live:
            beat.state, beat.state_at = "live", self._clock.now()
        known = [one for one in self._beats.values() if one.symbol not in self._unknown]
        if all(one.state == "live" for one in known):
            _log.info("%s: live: %d symbols, and no minute is missing", self.name, len(known))
            self._beat()

    def _note_update(self, symbol: str) -> None:
        self._last_message_at = self._updated_at[symbol] = self._now()

    def _note_valid_update(self) -> None:
        if not self._updating:
            self._updating = True
            self._set_live()

    def _now(self) -> int:
        return self._clock.milliseconds() * 1000

    def _sleep_in_thread(self, seconds: float) -> None:
        self._stopping.wait(seconds)
