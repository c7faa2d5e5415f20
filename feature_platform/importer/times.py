"""Convert the times of bars from all forms that files use to microseconds in UTC."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_platform.bar_rules import (
    FIRST_YEAR,
    LAST_YEAR,
    MINUTE_US,
    NO_TIME,
    Ints,
    Mask,
    epoch_times,
    inside_minutes,
    to_numpy,
    unit_times,
)
from feature_platform.errors import UserError

Stamp = Literal["open", "close"]

# The last second of a minute: files write a bar's end as 00:59.999, 00:59 or 01:00.
_LAST_SECOND_US = 59_000_000

_YEARS = f"is not in the years {FIRST_YEAR} to {LAST_YEAR}"
_UNKNOWN = "is neither a whole number nor a known form of date"

_ZONE = r"(?: ?(?P<z>Z|UTC|GMT|(?:UTC|GMT)?[+-]\d{2}(?::?\d{2})?))?"
_CLOCK = r"(?P<h>\d{1,2}):(?P<i>\d{2})(?::(?P<s>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
_HALF_DAY = r"(?: ?(?P<p>[AaPp][Mm]))?"
_OF_DAY = rf"(?:(?:T| +){_CLOCK}{_HALF_DAY}{_ZONE})?"

_COMPACT_DATE = r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})"
_COMPACT_CLOCK = r"(?P<h>\d{2}):?(?P<i>\d{2})(?::?(?P<s>\d{2})(?:\.(?P<f>\d{1,9}))?)?"

# The forms of dates and times, the usual ones first. Groups: y m d of the date, a b where day and
# month are doubtful, h i s f of the time of day, p for AM or PM, z for the offset from UTC.
FORMS = (
    rf"(?P<y>\d{{4}})[-./](?P<m>\d{{1,2}})[-./](?P<d>\d{{1,2}}){_OF_DAY}",
    rf"(?P<d>\d{{1,2}})\.(?P<m>\d{{1,2}})\.(?P<y>\d{{4}}){_OF_DAY}",
    rf"(?P<a>\d{{1,2}})[/-](?P<b>\d{{1,2}})[/-](?P<y>\d{{4}}){_OF_DAY}",
    rf"{_COMPACT_DATE}(?:[T ]?{_COMPACT_CLOCK}{_ZONE})?",
    # CryptoDataDownload's hours.
    r"(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2}) (?P<h>\d{1,2})[- ]?(?P<p>[AaPp][Mm])",
)
_ANCHORED = tuple(f"^{form}$" for form in FORMS)
_COMPILED = tuple(re.compile(form) for form in FORMS)
_HOURS = _COMPILED[-1]

_WHOLE = r"^[+-]?\d+$"
_DECIMAL = r"^\d+\.\d*$"
_SCIENTIFIC = r"^\d\.?\d*[eE]\+?\d{1,2}$"
_DATE = re.compile(
    r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{4}|(19[89]|20\d)\d[01]\d[0-3]\d"
)
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[AaPp][Mm])?|\d{3,6}")
_EPOCH = re.compile(r"[1-9]\d{8,18}(\.\d*)?|\d\.\d*[eE]\+?\d{1,2}")
# Compact dates of 8, 12 and 14 digits, none of which is an epoch within the years.
_COMPACT = r"^(19[89]\d|20\d{2})[01]\d[0-3]\d(\d{4}(\d{2})?)?$"


@dataclass(frozen=True, slots=True)
class TimeRule:
    """The rule by which the times of a file are read.

    zone: the IANA name of the zone of times without an offset; None is UTC.
    stamp: whether a time is the start or the end of its bar.
    ticks: whether rows may lie inside minutes.
    day_first: whether 3/4/2024 is in April.
    Raises UserError where the zone does not exist.
    """

    zone: str | None = None
    stamp: Stamp = "open"
    ticks: bool = False
    day_first: bool | None = None

    def __post_init__(self) -> None:
        if self.zone is not None:
            try:
                ZoneInfo(self.zone)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise UserError(
                    f"--timezone {self.zone}: no such time zone; write an IANA name such as"
                    " America/New_York"
                ) from None


def is_time(text: str) -> bool:
    """Return whether a text is an epoch or a time in another known form."""
    return is_epoch(text) or any(form.fullmatch(text) for form in _COMPILED)


def is_date(text: str) -> bool:
    """Return whether a text is a date without a time of day."""
    return _DATE.fullmatch(text) is not None


def is_clock(text: str) -> bool:
    """Return whether a text is a time of day."""
    return _TIME_OF_DAY.fullmatch(text) is not None


def is_epoch(text: str) -> bool:
    """Return whether a text is a number of seconds or fractions of seconds since 1970."""
    return _EPOCH.fullmatch(text) is not None and not re.match(_COMPACT, text)


def is_hour(text: str) -> bool:
    """Return whether a text is an hour without minutes."""
    return _HOURS.fullmatch(text) is not None


def text_times(texts: pa.Array, faults: dict[int, str], rule: TimeRule) -> tuple[Ints, Mask]:
    """Return texts as microseconds since 1970-01-01, and a mask of those without an offset.

    faults: receives the reason for each text that is not a time, by its index.
    """
    times = np.full(len(texts), NO_TIME, np.int64)
    local = np.zeros(len(texts), np.bool_)
    left = np.ones(len(texts), np.bool_)
    left &= ~_whole_times(texts, times, faults)
    for form in _ANCHORED:
        if not left.any():
            break
        indices = np.flatnonzero(left)
        some = texts if len(indices) == len(texts) else texts.take(pa.array(indices))
        groups = pc.extract_regex(some, form)
        matched = ~to_numpy(groups.is_null())
        if not matched.any():
            continue
        rows = indices[matched]
        parts = groups if matched.all() else groups.filter(pa.array(matched))
        times[rows], local[rows] = _form_times(parts, rows, texts, faults, rule)
        left[rows] = False
    if left.any():
        left &= ~_decimal_times(texts, left, times, faults)
    for index in np.flatnonzero(left).tolist():
        text = texts[index].as_py()
        faults.setdefault(index, f"time {text!r} {_UNKNOWN}" if text else "ts is missing")
    return times, local


def float_times(values: NDArray[np.float64], faults: dict[int, str]) -> Ints:
    """Convert floating-point epochs to microseconds since 1970-01-01 UTC, one for each value.

    The magnitude of an epoch decides whether it holds seconds, milliseconds and so on.
    faults: gets the reason of each value that is no time, by its index; that time is NO_TIME.
    """
    times = np.full(len(values), NO_TIME, np.int64)
    finite = np.isfinite(values) & (np.abs(values) < 2.0**62)
    for at in np.flatnonzero(~finite).tolist():
        faults.setdefault(
            at, "ts is missing" if np.isnan(values[at]) else f"time {values[at]} {_YEARS}"
        )
    whole = finite & (values == np.floor(values))
    indices = np.flatnonzero(whole)
    times[indices] = epoch_times(values[indices].astype(np.int64), faults, indices)
    # The resolution of a double is a quarter of a microsecond for seconds in these years.
    parts = np.flatnonzero(finite & ~whole)
    scaled = np.rint(values[parts] * _scale(values[parts])).astype(np.int64)
    found: dict[int, str] = {}
    times[parts] = unit_times(scaled, 1_000_000, found)
    for at in found:
        faults.setdefault(int(parts[at]), f"time {values[parts[at]]} {_YEARS}")
    return times


def finish_times(
    times: Ints, local: Mask, faults: dict[int, str], rule: TimeRule, shown: Callable[[int], str]
) -> Ints:
    """Convert local times to UTC and ends of bars to their starts.

    shown: returns the time of a row as the file writes it.
    faults: receives the reason for each time that is ambiguous or not the start of a minute.
    """
    known = times != NO_TIME
    if rule.zone is not None and local.any():
        times = _to_utc(times, local & known, faults, rule.zone, shown)
        known = times != NO_TIME
    inside = inside_minutes(times)
    if rule.stamp == "close":
        ends = times % MINUTE_US >= _LAST_SECOND_US
        times = np.where(known & ~inside, times - MINUTE_US, times)
        times = np.where(known & ends, times - times % MINUTE_US, times)
        inside &= ~ends
    if not rule.ticks:
        remedy = "" if rule.stamp == "close" else " (--time close, --ticks)"
        for at in np.flatnonzero(inside).tolist():
            faults.setdefault(at, f"time {shown(at)} is not the start of a minute{remedy}")
    return times


def _to_utc(
    times: Ints, local: Mask, faults: dict[int, str], zone: str, shown: Callable[[int], str]
) -> Ints:
    rows = np.flatnonzero(local)
    naive = pa.array(times[rows], pa.int64()).cast(pa.timestamp("us"))
    early = pc.assume_timezone(naive, zone, ambiguous="earliest", nonexistent="earliest")
    late = pc.assume_timezone(naive, zone, ambiguous="latest", nonexistent="latest")
    first, last = to_numpy(early.cast(pa.int64())), to_numpy(late.cast(pa.int64()))
    converted = times.copy()
    converted[rows] = first
    doubtful = np.flatnonzero(first != last)
    back = to_numpy(pc.local_timestamp(early).cast(pa.int64()))
    for at in doubtful.tolist():
        row = int(rows[at])
        how = "twice" if back[at] == times[row] else "never"
        faults.setdefault(row, f"time {shown(row)} occurs {how} in {zone}")
        converted[row] = NO_TIME
    return converted


def _whole_times(texts: pa.Array, times: Ints, faults: dict[int, str]) -> Mask:
    """Convert the texts that are whole numbers, as epochs; return a mask of them."""
    whole: Mask = to_numpy(pc.match_substring_regex(texts, _WHOLE))
    if not whole.any():
        return whole
    compact: Mask = to_numpy(pc.match_substring_regex(texts, _COMPACT))
    whole &= ~compact
    indices = np.flatnonzero(whole)
    some = texts if len(indices) == len(texts) else texts.take(pa.array(indices))
    long = to_numpy(pc.greater(pc.utf8_length(some), 19))
    for index in indices[long].tolist():
        faults.setdefault(index, f"time {texts[index].as_py()!r} {_YEARS}")
    if long.any():
        indices = indices[~long]
        some = texts.take(pa.array(indices))
    try:
        numbers = to_numpy(some.cast(pa.int64()))
    except pa.ArrowInvalid:  # a text has a sign, or nineteen digits that are too large
        numbers = np.array([min(int(text), 2**62) for text in some.to_pylist()], np.int64)
    times[indices] = epoch_times(numbers, faults, indices)
    return whole


def _decimal_times(texts: pa.Array, left: Mask, times: Ints, faults: dict[int, str]) -> Mask:
    """Convert epochs with decimals or an exponent, by their digits; return a mask of them."""
    done = np.zeros(len(texts), np.bool_)
    decimal = left & to_numpy(pc.match_substring_regex(texts, _DECIMAL))
    scientific = left & to_numpy(pc.match_substring_regex(texts, _SCIENTIFIC))
    rows = np.flatnonzero(scientific)
    if len(rows):
        values = to_numpy(texts.take(pa.array(rows)).cast(pa.float64()))
        found: dict[int, str] = {}
        times[rows] = float_times(values, found)
        faults.update({int(rows[at]): reason for at, reason in found.items()})
    rows = np.flatnonzero(decimal)
    if len(rows):
        some = texts.take(pa.array(rows))
        parts = pc.extract_regex(some, r"^(?P<n>\d+)\.(?P<f>\d*?)0*$")
        too_long = to_numpy(pc.greater(pc.utf8_length(pc.struct_field(parts, "n")), 18))
        too_long |= to_numpy(pc.greater(pc.utf8_length(pc.struct_field(parts, "f")), 9))
        number = pc.if_else(pa.array(too_long), "0", pc.struct_field(parts, "n")).cast(pa.int64())
        digits = pc.if_else(pa.array(too_long), "0", pc.struct_field(parts, "f"))
        billionths = to_numpy(pc.utf8_rpad(digits, 9, "0").cast(pa.int64()))
        whole = to_numpy(number)
        scale = _scale(whole.astype(np.float64)).astype(np.int64)
        exact = billionths * scale % 1_000_000_000 == 0
        # A fraction is less than one unit, so the time remains within the years.
        base = epoch_times(whole, faults, rows)
        times[rows] = np.where(base == NO_TIME, NO_TIME, base + billionths * scale // 1_000_000_000)
        for at in np.flatnonzero(too_long | (~exact & (base != NO_TIME))).tolist():
            row = int(rows[at])
            faults[row] = f"time {texts[row].as_py()!r} is finer than a microsecond"
            times[row] = NO_TIME
    done |= decimal | scientific
    return done


def _scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the microseconds of each epoch's unit."""
    return np.where(values < 1e10, 1e6, np.where(values < 1e13, 1e3, 1.0))


def _form_times(
    parts: pa.StructArray, rows: Ints, texts: pa.Array, faults: dict[int, str], rule: TimeRule
) -> tuple[Ints, Mask]:
    """Convert the parts of texts of one form; return times and a mask of times without offset."""
    names = {field.name for field in parts.type}
    size = len(rows)

    def part(name: str) -> pa.Array:
        return pc.struct_field(parts, name) if name in names else pa.array([""] * size, pa.string())

    def number(name: str) -> Ints:
        if name not in names:
            return np.zeros(size, np.int64)
        found = part(name)
        return to_numpy(pc.if_else(pc.equal(found, ""), "0", found).cast(pa.int64()))

    if "a" in names:
        if rule.day_first is None:
            for row in rows.tolist():
                text = texts[row].as_py()
                faults.setdefault(row, f"time {text!r} may have the day or the month first")
            return np.full(size, NO_TIME, np.int64), np.zeros(size, np.bool_)
        day, month = number("a" if rule.day_first else "b"), number("b" if rule.day_first else "a")
    else:
        day, month = number("d"), number("m")
    hour, minute, second = number("h"), number("i"), number("s")
    if "p" in names:
        half = part("p")
        given: Mask = to_numpy(pc.not_equal(half, ""))
        noon: Mask = to_numpy(pc.match_substring_regex(half, "^[Pp]"))
        odd_hour = given & ((hour < 1) | (hour > 12))
        hour = np.where(given, hour % 12 + 12 * noon, hour)
        hour[odd_hour] = 99
    months = ((number("y") - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    real = (month >= 1) & (month <= 12) & (day >= 1) & (days.astype("datetime64[M]") == months)
    in_day = (hour <= 23) & (minute <= 59) & (second <= 59)
    seconds = days.astype(np.int64) * 86_400 + hour * 3600 + minute * 60 + second
    offsets, local = _offsets(part("z"), size, "z" in names)
    nano = np.zeros(size, np.int64)
    if "f" in names and to_numpy(pc.not_equal(part("f"), "")).any():
        nano = to_numpy(pc.utf8_rpad(part("f"), 9, "0").cast(pa.int64()))
    good = real & in_day
    times = unit_times(
        np.where(good, seconds - offsets, 0) * 1_000_000 + nano // 1000,
        1_000_000,
        {},
    )
    for at in np.flatnonzero((times == NO_TIME) | ~good | (nano % 1000 != 0)).tolist():
        text = texts[int(rows[at])].as_py()
        if not real[at]:
            reason = "is not a valid date"
        elif not in_day[at]:
            reason = "has no valid time of day"
        elif times[at] == NO_TIME:
            reason = _YEARS
        else:
            reason = "is finer than a microsecond"
        faults.setdefault(int(rows[at]), f"time {text!r} {reason}")
        times[at] = NO_TIME
    return times, local


def _offsets(zones: pa.Array, size: int, written: bool) -> tuple[Ints, Mask]:
    """Return offsets from UTC in seconds, and a mask of the times without an offset."""
    if not written:
        return np.zeros(size, np.int64), np.ones(size, np.bool_)
    encoded = zones.dictionary_encode()
    seconds = [_offset(zone) for zone in encoded.dictionary.to_pylist()]
    codes = to_numpy(encoded.indices)
    offsets = np.array([value or 0 for value in seconds], np.int64)
    local = np.array([value is None for value in seconds], np.bool_)
    return offsets[codes], local[codes]


def _offset(zone: str) -> int | None:
    if not zone:
        return None
    digits = zone.removeprefix("UTC").removeprefix("GMT").removeprefix("Z").replace(":", "")
    if not digits:
        return 0
    minutes = int(digits[1:3]) * 60 + int(digits[3:5] or 0)
    return (-60 if digits[0] == "-" else 60) * minutes


def join_clock(dates: pa.Array, clocks: pa.Array) -> pa.Array:
    """Join dates and times of day of two columns to texts of times.

    A time of day may be a number: 93000 is 09:30:00, and 930 is 09:30.
    """
    compact = pc.match_substring_regex(clocks, r"^\d{3,6}$")
    if pc.any(compact).as_py():
        seconds = pc.greater(pc.utf8_length(clocks), 4)
        padded = pc.if_else(seconds, pc.utf8_lpad(clocks, 6, "0"), pc.utf8_lpad(clocks, 4, "0"))
        spelt = pc.replace_substring_regex(padded, r"^(\d{2})(\d{2})(\d{2})?$", r"\1:\2:\3")
        clocks = pc.if_else(compact, pc.utf8_rtrim(spelt, ":"), clocks)
    days = pc.replace_substring_regex(dates, r"^(\d{4})(\d{2})(\d{2})$", r"\1-\2-\3")
    return pc.binary_join_element_wise(days, clocks, " ")


def shown_text(texts: pa.Array) -> Callable[[int], str]:
    """Return the function that quotes the text at an index."""

    def shown(at: int) -> str:
        text: Any = texts[at].as_py()
        return text if re.fullmatch(r"\d+", str(text)) else repr(text)

    return shown
