"""What goes wrong at the simulated exchange: each fault a model, and the set that is at work.

There are three kinds. A request fault hits answers: some, or the next so many. A bar fault is a
state of the world: what the venue publishes of some minutes, or when, for as long as it is set.
A stream fault hits what is sent of some minutes over WebSockets, while REST knows better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from feature_platform.errors import UserError
from feature_platform.simulator._noise import key_of, uniform_at

# A stream is asked for once: when its WebSocket is opened.
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
# By default those that leave no bar; a bar of another time may be one.
DAMAGES: tuple[Damage, ...] = tuple(
    one for one in get_args(Damage) if one not in ("future_time", "old_time")
)

_Seconds = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=1)]


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


_Moment = Annotated[datetime, AfterValidator(_in_utc)]


class _Fault(BaseModel):
    """What all faults share.

    symbol: hit this market only, such as "BTC/USDT".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    symbol: str | None = None


class RequestFault(_Fault):
    """Hit requests.

    endpoint: of these only; "any" for all of them.
    probability: the share of them that is hit.
    after: let so many pass first.
    count: hit so many, then no more; None for all to come.
    """

    endpoint: Endpoint | Literal["any"] = "klines"
    probability: _Share = 1.0
    after: Annotated[int, Field(ge=0)] = 0
    count: _Count | None = None


class Latency(RequestFault):
    """Answer so many seconds later."""

    kind: Literal["latency"] = "latency"
    seconds: _Seconds


class TooManyRequests(RequestFault):
    """Answer 429 with Retry-After, to this request and to all until then."""

    kind: Literal["too_many_requests"] = "too_many_requests"
    retry_after: _Count = 1


class Banned(RequestFault):
    """Answer 418 with Retry-After, to this request and to all until then."""

    kind: Literal["banned"] = "banned"
    retry_after: _Count = 120


class ServerError(RequestFault):
    """Answer a status of 5xx: with Binance's JSON, or for 502 and 504 a proxy's page."""

    kind: Literal["server_error"] = "server_error"
    status: Annotated[int, Field(ge=500, le=599)] = 503


class Reset(RequestFault):
    """Reset the connection when this share of the answer is sent."""

    kind: Literal["reset"] = "reset"
    at: _Share = 0.5


class Garbled(RequestFault):
    """Answer 200 with the first half of the JSON."""

    kind: Literal["garbled"] = "garbled"


class Odd(RequestFault):
    """Answer 200 with this text: markup, `NaN`, nested lists, an answer to another question."""

    kind: Literal["odd"] = "odd"
    text: str


class Endless(RequestFault):
    """Answer without an end.

    gzip: with a few kB that are 16 MiB each.
    """

    kind: Literal["endless"] = "endless"
    gzip: bool = False


class Dripping(RequestFault):
    """Answer one byte in so many seconds, without an end."""

    kind: Literal["dripping"] = "dripping"
    seconds: _Seconds = 1.0


class ShortPage(RequestFault):
    """Answer no more than so many bars, the first ones."""

    kind: Literal["short_page"] = "short_page"
    rows: Annotated[int, Field(ge=0)] = 100


class OpenCandle(RequestFault):
    """Put the candle that is still open into the answer, asked for or not, and not as the last."""

    kind: Literal["open_candle"] = "open_candle"
    position: Literal["first", "middle", "last"] = "middle"


class Shuffled(RequestFault):
    """Answer bars out of order."""

    kind: Literal["shuffled"] = "shuffled"


class Repeated(RequestFault):
    """Answer some bars twice.

    differing: the second time with another volume.
    """

    kind: Literal["repeated"] = "repeated"
    rows: _Count = 1
    differing: bool = False


class IgnoredStart(RequestFault):
    """Answer the newest bars, whatever startTime says."""

    kind: Literal["ignored_start"] = "ignored_start"


class IgnoredEnd(RequestFault):
    """Answer bars beyond endTime, too."""

    kind: Literal["ignored_end"] = "ignored_end"


class Malformed(RequestFault):
    """Damage some bars of the answer.

    rows: how many.
    damages: in which ways, in turn.
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
    """Be so for the minutes of [start, end), by default for all."""

    start: _Moment | None = None
    end: _Moment | None = None


class QuietLeftOut(BarFault):
    """Publish no bar for a minute without trades; by default it is one with volume 0."""

    kind: Literal["quiet_left_out"] = "quiet_left_out"


class Late(BarFault):
    """Publish bars so many seconds after their end.

    probability: the share of the minutes that is late.
    """

    kind: Literal["late"] = "late"
    seconds: _Seconds
    probability: _Share = 1.0


class Corrected(BarFault):
    """Publish bars with a wrong close and volume at first.

    until: when all are put right; or
    seconds: how long after its end each is put right.
    probability: the share of the minutes that is wrong at first.
    """

    kind: Literal["corrected"] = "corrected"
    until: _Moment | None = None
    seconds: _Seconds | None = None
    probability: _Share = 1.0

    @model_validator(mode="after")
    def _says_when(self) -> Self:
        if (self.until is None) == (self.seconds is None):
            raise ValueError("give either until or seconds")
        return self


class Outage(BarFault):
    """Have no bars of a range of minutes.

    status: what requests that touch it are answered with; None to leave its bars out.
    """

    kind: Literal["outage"] = "outage"
    status: Annotated[int, Field(ge=500, le=599)] | None = None


class StreamFault(_Fault):
    """Hit what streams send of the minutes of [start, end), by default of all.

    probability: the share of these minutes that is hit; which, follows from seed and minute.
    count: hit so many, then no more; None for all to come.
    """

    start: _Moment | None = None
    end: _Moment | None = None
    probability: _Share = 1.0
    count: _Count | None = None

    def concerns(self, minute: int) -> bool:
        """Tell whether a minute is between start and end."""
        moment = datetime.fromtimestamp(minute * 60, UTC)
        return (self.start is None or self.start <= moment) and (
            self.end is None or moment < self.end
        )


class ConnectionFault(StreamFault):
    """Hit connections at a moment of a minute; with a `symbol`, those that have streams of it.

    second: of the minute; None for any.
    """

    second: Annotated[float, Field(ge=0, lt=60)] | None = None


class Dropped(ConnectionFault):
    """End connections.

    code: what the WebSocket is closed with; None to reset the connection.
    """

    kind: Literal["dropped"] = "dropped"
    code: Annotated[int, Field(ge=1000, le=4999)] | None = None


class Stalled(ConnectionFault):
    """Keep connections open and send nothing; what there is to send meanwhile is lost.

    seconds: for how long.
    pongs: whether pings are answered all the same.
    """

    kind: Literal["stalled"] = "stalled"
    seconds: _Seconds = 3600.0
    pongs: bool = False


class Duplicated(StreamFault):
    """Send trades and closed bars so many times more."""

    kind: Literal["duplicated"] = "duplicated"
    times: _Count = 1


class Reordered(StreamFault):
    """Send closed bars of even minutes after those of the next, and trades in pairs swapped.

    A stale update of the bar, when it was open, follows the closed one.
    """

    kind: Literal["reordered"] = "reordered"


class Lost(StreamFault):
    """Send neither trades nor the closed bar."""

    kind: Literal["lost"] = "lost"


class Impossible(StreamFault):
    """Send closed bars that cannot be, in place of the right ones.

    damages: in which ways, in turn.
    """

    kind: Literal["impossible"] = "impossible"
    damages: Annotated[tuple[Damage, ...], Field(min_length=1)] = DAMAGES


class Undecodable(StreamFault):
    """Send a frame that is no event after the closed bar.

    text: of the frame.
    binary: whether the frame is one of bytes, none of which is of a text.
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
    """Read faults from JSON, or from what JSON would give: objects with a `kind`.

    Raises UserError naming the first value that is wrong.
    """
    try:
        if isinstance(given, str | bytes):
            return _FAULTS.validate_json(given)
        return _FAULTS.validate_python(list(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"faults: {where + ': ' if where else ''}{first['msg']}") from None


class Faults:
    """Hold the faults that are at work, and decide which of them hit a request.

    All that is random in them follows from the seed and from how many requests there were.
    generation: goes up when they change.
    """

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        self._seed = seed
        self.generation = 0
        self._entries: tuple[_Entry, ...] = ()
        self.replace(faults)

    def replace(self, faults: Iterable[Fault]) -> None:
        """Have these faults and no others; counts begin anew."""
        self.generation += 1
        self._entries = tuple(_Entry(fault, self._seed, at) for at, fault in enumerate(faults))

    def add(self, faults: Iterable[Fault]) -> None:
        """Have these faults beside those that are at work."""
        self.generation += 1
        there = len(self._entries)
        self._entries += tuple(
            _Entry(fault, self._seed, there + at) for at, fault in enumerate(faults)
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return the faults as JSON would have them, each with how often it was `fired`."""
        return [
            {**entry.fault.model_dump(mode="json", exclude_defaults=True), **entry.name_and_count()}
            for entry in self._entries
        ]

    def fired(self, kind: str) -> int:
        """Return how many requests, or minutes of streams, the faults of a kind have hit."""
        return sum(entry.fired for entry in self._entries if entry.fault.kind == kind)

    def hitting(self, endpoint: Endpoint, symbol: str | None) -> Sequence[Hit]:
        """Return the faults that hit the next request, which counts for each of them."""
        hits = []
        for entry in self._entries:
            hit = entry.hit(endpoint, symbol)
            if hit is not None:
                hits.append(hit)
                if isinstance(hit.fault, TooManyRequests | Banned | ServerError):
                    break  # what comes after it never gets to see the request
        return hits

    def of_bars(self, symbol: str) -> list[tuple[BarFault, Any]]:
        """Return the bar faults of a market, each with the key of its random numbers."""
        return [
            (entry.fault, entry.key)
            for entry in self._entries
            if isinstance(entry.fault, BarFault) and entry.fault.symbol in (None, symbol)
        ]

    def of_stream(self, symbol: str, minute: int) -> list[StreamFault]:
        """Return the faults that hit what is sent of a minute of a market, which counts for each.

        Those that hit connections are not among them.
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
        """Return the faults that hit connections within a minute, and when, in order of time.

        start, end: [start, end) of a part of a minute, in milliseconds since 1970-01-01 UTC.
        """
        minute = start // 60_000
        return sorted(
            (
                (at, entry.fault)
                for entry in self._entries
                if isinstance(entry.fault, ConnectionFault)
                and start <= (at := entry.moment(entry.fault, minute)) < end
                and entry.hits_minute(minute)
            ),
            key=itemgetter(0),
        )


class Hit:
    """Be one fault at one request, with random numbers of its own."""

    def __init__(self, fault: RequestFault, key: Any) -> None:
        self.fault = fault
        self.key = key


class _Entry:
    """Count for one fault."""

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
        """Tell whether a stream fault hits a minute, and count it if so."""
        fault = self.fault
        assert isinstance(fault, StreamFault)
        if fault.count is not None and self.fired >= fault.count:
            return False
        key = key_of(self.key, symbol)
        if not fault.concerns(minute) or uniform_at(key, minute) >= fault.probability:
            return False
        self.fired += 1
        return True

    def moment(self, fault: ConnectionFault, minute: int) -> int:
        """Return when in a minute a fault hits connections, in milliseconds since 1970."""
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
