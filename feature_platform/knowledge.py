"""Read rows as they were known: at a time, or some time after the close of their bucket.

Knowledge is counted in the numbers of refreshes; docs/knowledge.md explains them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from psycopg import sql
from psycopg.sql import SQL, Composable, Identifier

from feature_platform.errors import UserError

if TYPE_CHECKING:
    from feature_platform._adbc import Reader

_UNITS = {
    "millisecond": timedelta(milliseconds=1),
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
_LONGEST = timedelta(days=36525)
_DELAY = re.compile(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})s?\s*")
_AFTER_CLOSE = re.compile(r"(?P<delay>.*\S)\s+after\s+close\s*", re.DOTALL)


# The queries whose rows are computed, for times before a view was built.
COMPUTED = {"knowledge_computed_at", "knowledge_computed_after_close"}


class Versioned(Protocol):
    """A table of features whose versions of rows are kept.

    name: of the table in schema public.
    id: of the version of a feature view; 0 for features_1m.
    columns: its columns of numbers.
    versions: the relation of all versions of its rows.
    every: the width of a bucket.
    built_at: when the history of a feature view was complete; None for features_1m.
    """

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> int: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def versions(self) -> Identifier | None: ...
    @property
    def every(self) -> timedelta: ...
    @property
    def built_at(self) -> datetime | None: ...


@dataclass(frozen=True)
class AtTime:
    """All rows as they were known at one time."""

    moment: datetime

    def statements(
        self, source: Reader, table: Versioned
    ) -> Iterator[tuple[str, Mapping[str, Composable]]]:
        """Yield the queries that read the rows, with their parts beside those of the window."""
        moment = sql.Literal(self.moment)
        if table.built_at is not None and self.moment < table.built_at:
            yield "knowledge_computed_at", {**computed_parts(table), "moment": moment}
            return
        (known,) = source.stream("knowledge_numbers", moment=moment).to_pylist()
        numbers = {name: sql.Literal(number) for name, number in known.items()}
        yield "knowledge_read_at", {"versions": _versions(table), **numbers}


@dataclass(frozen=True)
class AfterClose:
    """Each row as it was known some time after the close of its bucket."""

    delay: timedelta

    def statements(
        self, _: Reader, table: Versioned
    ) -> Iterator[tuple[str, Mapping[str, Composable]]]:
        """Yield the queries that read the rows, with their parts beside those of the window."""
        parts = {
            "every": sql.Literal(table.every.total_seconds()),
            "seconds": sql.Literal((table.every + self.delay).total_seconds()),
            "built_at": sql.Literal(table.built_at or "-infinity"),
        }
        yield (
            "knowledge_read_after_close",
            {**parts, "versions": _versions(table), "view": sql.Literal(table.id)},
        )
        if table.built_at is not None:
            yield "knowledge_computed_after_close", {**parts, **computed_parts(table)}


AsOf = AtTime | AfterClose


def parse_delay(name: str, text: str) -> timedelta:
    """Return a delay such as "2 seconds".

    Raises UserError, with the name of the argument, for anything else.
    """
    match = _DELAY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise UserError(
            f"{name}, {text!r}, is not a delay; write a number of milliseconds, seconds, minutes,"
            " hours or days, such as '2 seconds'"
        )
    amount, unit = float(match[1]), _UNITS[match[2]]
    if amount > _LONGEST / unit:
        raise UserError(f"{name}, {text!r}, is longer than all history")
    return amount * unit


def parse_as_of(as_of: datetime | str) -> AsOf:
    """Return the meaning of the argument `as_of`: a time with a zone, or a delay after close.

    Raises UserError for anything else.
    """
    if isinstance(as_of, str) and (match := _AFTER_CLOSE.fullmatch(as_of)):
        return AfterClose(parse_delay("the delay of as_of", match["delay"]))
    return AtTime(check_time("as_of", as_of, " or as '2 seconds after close'"))


def check_knowledge(
    source: Reader,
    as_of: AsOf,
    tables: Sequence[Versioned],
    symbols: Sequence[str],
    window: tuple[datetime, datetime],
) -> None:
    """Raise UserError where rows as they were known cannot be read."""
    check_built(tables)
    if isinstance(as_of, AtTime):
        limits = check_kept(source, "as_of", as_of.moment)
        _check_moment(as_of.moment, limits)
        if gone := forgotten(source, symbols, as_of.moment):
            raise forgotten_error(f"as_of, {as_of.moment.isoformat()},", *min(gone.items()))
        return
    check_begun("as_of", check_kept(source, "as_of of the first bucket", window[0]))


def check_built(tables: Iterable[Versioned]) -> None:
    """Raise UserError for a feature view whose history is not complete yet."""
    for table in tables:
        if table.id and table.built_at is None:
            raise UserError(
                f"the history of {table.name} is not complete: `feature-platform views list` shows"
                " its state"
            )


def check_kept(source: Reader, name: str, moment: datetime) -> dict[str, Any]:
    """Raise UserError for a time before which versions of rows were deleted.

    name: of the argument, for the message.
    Returns the first time that is noted (`begins`), and the time now.
    """
    (limits,) = source.stream("knowledge_limits").to_pylist()
    if limits["kept_from"] is not None and moment < limits["kept_from"]:
        raise UserError(
            f"{name}, {moment.isoformat()}, is too early: versions of rows are kept since"
            f" {limits['kept_from'].isoformat()} (`versions` of the retention)"
        )
    return dict(limits)


def forgotten(source: Reader, symbols: Sequence[str], moment: datetime) -> dict[str, datetime]:
    """Return when symbols were forgotten, of those for which it was after a time."""
    parts = {"symbols": sql.Literal(list(symbols)), "moment": sql.Literal(moment)}
    found = source.stream("knowledge_forgotten", **parts).to_pydict()
    return dict(zip(found["symbol"], found["forgotten_at"], strict=True))


def forgotten_error(shown: str, symbol: str, since: datetime) -> UserError:
    """Return the error for a time before a symbol was forgotten."""
    return UserError(
        f"{shown} is too early for {symbol!r}: its rows were forgotten at {since.isoformat()}"
    )


def check_begun(shown: str, limits: Mapping[str, Any]) -> None:
    """Raise UserError before the first refresh.

    shown: the argument, for the message. limits: the result of check_kept.
    """
    if limits["begins"] is None:
        raise UserError(f"{shown} is before the first refresh: nothing is known yet")


def _check_moment(moment: datetime, limits: dict[str, Any]) -> None:
    shown = f"as_of, {moment.isoformat()},"
    if moment > limits["now"]:
        raise UserError(f"{shown} is in the future: it is {limits['now'].isoformat()} now")
    check_begun(shown, limits)
    if moment < limits["begins"]:
        raise UserError(
            f"{shown} is too early: knowledge begins at {limits['begins'].isoformat()}, with the"
            " first refresh whose time was noted"
        )


def computed_parts(table: Versioned) -> dict[str, Composable]:
    """Return the parts of a query that computes rows of before a view was built."""
    values = [
        SQL("k.values[{}] AS {}").format(sql.Literal(place), Identifier(name))
        for place, name in enumerate(table.columns, 1)
    ]
    return {"view": sql.Literal(table.id), "values": SQL(", ").join(values)}


def _versions(table: Versioned) -> Identifier:
    assert table.versions is not None, "tables of bars have no versions"
    return table.versions


def check_time(name: str, time: datetime | str, other: str = "") -> datetime:
    """Return a time in UTC; raise UserError where it is none or has no zone.

    other: another way to write the argument, for the message.
    """
    example = f'write it as "2026-02-01T12:00Z" or datetime(2026, 2, 1, 12, tzinfo=UTC){other}'
    try:
        read = datetime.fromisoformat(time) if isinstance(time, str) else time
        if not isinstance(read, datetime):
            raise UserError(f"{name}, {time!r}, is not a time; {example}")
        if read.utcoffset() is None:  # raises ValueError for pandas' NaT, which is a datetime
            raise UserError(f"{name}, {time}, has no time zone; {example}")
        return read.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UserError(f"{name}, {time!r}, is not a time; {example}") from None
