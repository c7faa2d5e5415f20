"""The faults of the simulated exchange: a model of each, and the set of active ones.

There are three kinds. A request fault changes answers: some of them, or a number of next ones. A
bar fault changes the published bars of some minutes, or their time, while it is active. A stream
fault changes the events of some minutes, while REST has the right bars.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from feature_platform.clock import parse_time
from feature_platform.errors import UserError
from feature_platform.simulator._noise import key_of, uniform_at

# `stream` is the request that opens a WebSocket.
Endpoint = Literal["ping", "time", "exchangeInfo", "klines", "stream", "archive"]

Damage = Literal[
    "missing_price",
    "text_price",
    "nan_price",
    "zero_price",
    "absurd_price",
    "high_below_low",
    "negative_volume",
    "infinite_volume",
    "missing_time",
    "odd_time",
    "far_time",
    "future_time",
    "old_time",
    "short_row",
    "not_a_row",
]
# By default those that make a bar invalid; a bar of another time may be valid.
DAMAGES: tuple[Damage, ...] = tuple(
    one for one in get_args(Damage) if one not in ("future_time", "old_time")
)

_Seconds = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=1)]


def _parse_time(given: object) -> datetime | None:
    return None if given is None else parse_time(str(given))


_Time = Annotated[datetime | None, BeforeValidator(_parse_time)]


class _Fault(BaseModel):
    """The base of all faults.

    symbol: affect this symbol only, such as "BTC/USDT".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    symbol: str | None = None


class RequestFault(_Fault):
    """A fault of requests.

    endpoint: affect requests of this endpoint only; "any" for all.
    probability: the part of them that is affected.
    after: the number of requests before the first affected one.
    count: the most affected requests; None for no limit.
    """

    endpoint: Endpoint | Literal["any"] = "klines"
    probability: _Share = 1.0
    after: Annotated[int, Field(ge=0)] = 0
    count: _Count | None = None


class Latency(RequestFault):
    """Answer some seconds later."""

    kind: Literal["latency"] = "latency"
    seconds: _Seconds


class TooManyRequests(RequestFault):
    """Answer 429 with Retry-After to this request and to all until that time."""

    kind: Literal["too_many_requests"] = "too_many_requests"
    retry_after: _Count = 1


class Banned(RequestFault):
    """Answer 418 with Retry-After to this request and to all until that time."""

    kind: Literal["banned"] = "banned"
    retry_after: _Count = 120


class ServerError(RequestFault):
    """Answer a status of 5xx with Binance's JSON; 502 and 504 with the page of a proxy."""

    kind: Literal["server_error"] = "server_error"
    status: Annotated[int, Field(ge=500, le=599)] = 503


class Reset(RequestFault):
    """Reset the connection when this part of the answer is sent."""

    kind: Literal["reset"] = "reset"
    at: _Share = 0.5


class Garbled(RequestFault):
    """Answer 200 with the first half of the JSON."""

    kind: Literal["garbled"] = "garbled"


class Odd(RequestFault):
    """Answer 200 with this text: markup, `NaN`, nested lists, the answer to another request."""

    kind: Literal["odd"] = "odd"
    text: str


class Endless(RequestFault):
    """Answer without an end.

    gzip: compressed, so that each few kB expand to 16 MiB.
    """

    kind: Literal["endless"] = "endless"
    gzip: bool = False


class Dripping(RequestFault):
    """Answer one byte in some seconds, without an end."""

    kind: Literal["dripping"] = "dripping"
    seconds: _Seconds = 1.0


class ShortPage(RequestFault):
    """Answer only the first bars, at most `rows`."""

    kind: Literal["short_page"] = "short_page"
    rows: Annotated[int, Field(ge=0)] = 100


class OpenCandle(RequestFault):
    """Put the open candle into the answer, even if it was not requested, at any position."""

    kind: Literal["open_candle"] = "open_candle"
    position: Literal["first", "middle", "last"] = "middle"


class Shuffled(RequestFault):
    """Answer bars out of order."""

    kind: Literal["shuffled"] = "shuffled"


class Repeated(RequestFault):
    """Answer some bars twice.

    differing: with another volume the second time.
    """

    kind: Literal["repeated"] = "repeated"
    rows: _Count = 1
    differing: bool = False


class IgnoredStart(RequestFault):
    """Answer the newest bars and ignore startTime."""

    kind: Literal["ignored_start"] = "ignored_start"


class IgnoredEnd(RequestFault):
    """Answer bars after endTime, too."""

    kind: Literal["ignored_end"] = "ignored_end"


class Malformed(RequestFault):
    """Damage some bars of the answer.

    rows: the number of damaged bars.
    damages: the kinds of damage, used in turn.
    """

    kind: Literal["malformed"] = "malformed"
    rows: _Count = 1
    damages: Annotated[tuple[Damage, ...], Field(min_length=1)] = DAMAGES


class NotPublished(RequestFault):
    """Answer 404 for an archive."""

    kind: Literal["not_published"] = "not_published"
    endpoint: Endpoint | Literal["any"] = "archive"


class WrongChecksum(RequestFault):
    """Answer another checksum than the archive's."""

    kind: Literal["wrong_checksum"] = "wrong_checksum"
    endpoint: Endpoint | Literal["any"] = "archive"


class BarFault(_Fault):
    """A fault of the bars of [start, end), by default of all."""

    start: _Time = None
    end: _Time = None


class QuietLeftOut(BarFault):
    """Publish no bar of a minute without trades; by default it has a bar with volume 0."""

    kind: Literal["quiet_left_out"] = "quiet_left_out"


class Late(BarFault):
    """Publish bars some seconds after their end.

    probability: the part of the minutes that is late.
    """

    kind: Literal["late"] = "late"
    seconds: _Seconds
    probability: _Share = 1.0


class Corrected(BarFault):
    """Publish bars with a wrong close and volume at first.

    until: the time at which all are corrected; or
    seconds: the time from the end of each to its correction.
    probability: the part of the minutes that is wrong at first.
    """

    kind: Literal["corrected"] = "corrected"
    until: _Time = None
    seconds: _Seconds | None = None
    probability: _Share = 1.0

    @model_validator(mode="after")
    def _has_one_time(self) -> Self:
        if (self.until is None) == (self.seconds is None):
            raise ValueError("give either until or seconds")
        return self


class Outage(BarFault):
    """Publish no bars of a range of minutes.

    status: the answer to requests of these minutes; None to answer without their bars.
    """

    kind: Literal["outage"] = "outage"
    status: Annotated[int, Field(ge=500, le=599)] | None = None


class StreamFault(_Fault):
    """A fault of the events of the minutes of [start, end), by default of all.

    probability: the part of these minutes that is affected, chosen by seed and minute.
    count: the most affected minutes; None for no limit.
    """

    start: _Time = None
    end: _Time = None
    probability: _Share = 1.0
    count: _Count | None = None

    def concerns(self, minute: int) -> bool:
        """Return whether a minute is between start and end."""
        at = datetime.fromtimestamp(minute * 60, UTC)
        return (self.start is None or self.start <= at) and (self.end is None or at < self.end)


class ConnectionFault(StreamFault):
    """A fault of connections; with a `symbol`, only of those with streams of it.

    second: when it happens within the minute; None for a random second.
    """

    second: Annotated[float, Field(ge=0, lt=60)] | None = None


class Dropped(ConnectionFault):
    """End connections.

    code: the code that closes the WebSocket; None to reset the connection.
    """

    kind: Literal["dropped"] = "dropped"
    code: Annotated[int, Field(ge=1000, le=4999)] | None = None


class Stalled(ConnectionFault):
    """Keep connections open without sending events; the events of that time are lost.

    seconds: the duration.
    pongs: whether pings are answered.
    """

    kind: Literal["stalled"] = "stalled"
    seconds: _Seconds = 3600.0
    pongs: bool = False


class Duplicated(StreamFault):
    """Send trades and closed bars some more times."""

    kind: Literal["duplicated"] = "duplicated"
    times: _Count = 1


class Reordered(StreamFault):
    """Send closed bars of even minutes after those of the next, and pairs of trades swapped.

    An old update of the open bar follows the closed one.
    """

    kind: Literal["reordered"] = "reordered"


class Lost(StreamFault):
    """Send neither trades nor the closed bar.

    updates: nor updates of the open bar.
    """

    kind: Literal["lost"] = "lost"
    updates: bool = False


class Impossible(StreamFault):
    """Send invalid closed bars in place of the right ones.

    damages: the kinds of damage, used in turn.
    """

    kind: Literal["impossible"] = "impossible"
    damages: Annotated[tuple[Damage, ...], Field(min_length=1)] = DAMAGES


class Undecodable(StreamFault):
    """Send a frame that is not an event after the closed bar.

    text: the text of the frame.
    binary: send a binary frame instead, which is not valid UTF-8.
    """

    kind: Literal["undecodable"] = "undecodable"
    text: str = '{"a":NaN}'
    binary: bool = False


Fault = (
    Latency
    | TooManyRequests
    | Banned
    | ServerError
    | Reset
    | Garbled
    | Odd
    | Endless
    | Dripping
    | ShortPage
    | OpenCandle
    | Shuffled
    | Repeated
    | IgnoredStart
    | IgnoredEnd
    | Malformed
    | NotPublished
    | WrongChecksum
    | QuietLeftOut
    | Late
    | Corrected
    | Outage
    | Dropped
    | Stalled
    | Duplicated
    | Reordered
    | Lost
    | Impossible
    | Undecodable
)

_FAULTS: TypeAdapter[list[Fault]] = TypeAdapter(list[Annotated[Fault, Discriminator("kind")]])


def parse_faults(given: str | bytes | Iterable[dict[str, Any]]) -> list[Fault]:
    """Read faults from JSON, or from parsed JSON: objects with a `kind`.

    Raises UserError with the first wrong value.
    """
    try:
        if isinstance(given, str | bytes):
            return _FAULTS.validate_json(given)
        return _FAULTS.validate_python(list(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"faults: {where + ': ' if where else ''}{reason}") from None


class Faults:
    """The active faults; selects those of a request, a bar or an event.

    Random choices depend only on the seed and on the count of requests.
    generation: a number that grows with each change of the faults.
    """

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        self._seed = seed
        self.generation = 0
        self._entries: tuple[_Entry, ...] = ()
        self.replace(faults)

    def replace(self, faults: Iterable[Fault]) -> None:
        """Replace all faults by these; counts start at 0."""
        self.generation += 1
        self._entries = tuple(_Entry(fault, self._seed, at) for at, fault in enumerate(faults))

    def add(self, faults: Iterable[Fault]) -> None:
        """Add faults to the active ones."""
        self.generation += 1
        there = len(self._entries)
        self._entries += tuple(
            _Entry(fault, self._seed, there + at) for at, fault in enumerate(faults)
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return the faults as JSON values, with the count `fired` of each."""
        return [
            {**entry.fault.model_dump(mode="json", exclude_defaults=True), **entry.name_and_count()}
            for entry in self._entries
        ]

    def fired(self, kind: str) -> int:
        """Return the number of requests, or minutes of streams, that a kind of fault affected."""
        return sum(entry.fired for entry in self._entries if entry.fault.kind == kind)

    def hitting(self, endpoint: Endpoint, symbol: str | None) -> Sequence[Hit]:
        """Return the faults of the next request, and count it for each fault of its endpoint."""
        hits = []
        for entry in self._entries:
            hit = entry.hit(endpoint, symbol)
            if hit is not None:
                hits.append(hit)
                if isinstance(hit.fault, TooManyRequests | Banned | ServerError):
                    break  # the request ends here, before later faults
        return hits

    def of_bars(self, symbol: str) -> list[tuple[BarFault, Any]]:
        """Return the bar faults of a symbol, each with the key of its random numbers."""
        return [
            (entry.fault, entry.key)
            for entry in self._entries
            if isinstance(entry.fault, BarFault) and entry.fault.symbol in (None, symbol)
        ]

    def of_stream(self, symbol: str, minute: int) -> list[StreamFault]:
        """Return the faults of the events of a symbol's minute, and count the minute for each.

        Faults of connections are not included.
        """
        return [
            entry.fault
            for entry in self._entries
            if isinstance(entry.fault, StreamFault)
            and not isinstance(entry.fault, ConnectionFault)
            and entry.fault.symbol in (None, symbol)
            and entry.hits_minute(minute, symbol)
        ]

    def of_connections(self, start: int, end: int) -> list[tuple[int, ConnectionFault]]:
        """Return the faults of connections within a minute, with their times, in order of time.

        start, end: [start, end) of a part of a minute, in milliseconds since 1970-01-01 UTC.
        """
        minute = start // 60_000
        return sorted(
            (
                (at, entry.fault)
                for entry in self._entries
                if isinstance(entry.fault, ConnectionFault)
                and start <= (at := entry.time_in(entry.fault, minute)) < end
                and entry.hits_minute(minute)
            ),
            key=itemgetter(0),
        )


class Hit:
    """One fault of one request, with its own random numbers."""

    def __init__(self, fault: RequestFault, key: Any) -> None:
        self.fault = fault
        self.key = key


class _Entry:
    """One fault with its counts."""

    def __init__(self, fault: Fault, seed: int, at: int) -> None:
        self.fault = fault
        self.key = key_of(seed, "fault", at, fault.kind)
        self.fired = 0
        self._seen = 0

    def name_and_count(self) -> dict[str, Any]:
        counts = isinstance(self.fault, RequestFault | StreamFault)
        fired = {"fired": self.fired} if counts else {}
        return {"kind": self.fault.kind, **fired}

    def hits_minute(self, minute: int, symbol: str = "") -> bool:
        """Return whether a stream fault affects a minute, and count the minute if so."""
        fault = self.fault
        assert isinstance(fault, StreamFault)
        if fault.count is not None and self.fired >= fault.count:
            return False
        key = key_of(self.key, symbol)
        if not fault.concerns(minute) or uniform_at(key, minute) >= fault.probability:
            return False
        self.fired += 1
        return True

    def time_in(self, fault: ConnectionFault, minute: int) -> int:
        """Return the time of a fault of connections within a minute, in ms since 1970."""
        second = fault.second
        if second is None:
            second = 60 * uniform_at(key_of(self.key, "second"), minute)
        return minute * 60_000 + int(second * 1000)

    def hit(self, endpoint: Endpoint, symbol: str | None) -> Hit | None:
        fault = self.fault
        if not isinstance(fault, RequestFault):
            return None
        if fault.endpoint not in ("any", endpoint) or fault.symbol not in (None, symbol):
            return None
        self._seen += 1
        if self._seen <= fault.after or (fault.count is not None and self.fired >= fault.count):
            return None
        if uniform_at(self.key, self._seen) >= fault.probability:
            return None
        self.fired += 1
        return Hit(fault, key_of(self.key, self._seen))
