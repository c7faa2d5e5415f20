"""A live view of the platform in a terminal: its symbols, the worst first."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from feature_platform.cli import console
from feature_platform.counted import counted
from feature_platform.database import connect, server_description
from feature_platform.errors import UserError, one_line
from feature_platform.gaps import minutes_to_account
from feature_platform.heartbeat import StoredHeartbeat, list_heartbeats
from feature_platform.queries import queries
from feature_platform.schema import prepare
from feature_platform.settings import get_settings
from feature_platform.status import (
    PolicyStatus,
    SymbolStatus,
    ViewState,
    policy_runners,
    policy_status,
    symbol_status,
    view_states,
)

# Ages above this one are red. A row is stored within a second of its bar, and a bar soon after its
# minute, so an age since a minute's end is below two minutes in a healthy platform.
_LATE = timedelta(minutes=2)
_MINUTE = timedelta(minutes=1)
_WIDEST = 10_000  # columns
_AROUND = 3  # lines beside the symbols: the table's header, "... and N more", the cursor's


@dataclass(frozen=True)
class Frame:
    """The state of the platform at one time.

    now: time of the platform's clock.
    open_minutes: missing minutes that are not explained yet, by symbol.
    minutes_left: number of minutes that are not accounted for yet; until it is 0, `open_minutes`
        is too small.
    runners: the kinds of processes that run the policy now.
    """

    now: datetime
    database: str
    symbols: Sequence[SymbolStatus]
    open_minutes: dict[str, int]
    policy: PolicyStatus | None
    feeds: Sequence[StoredHeartbeat] = ()
    minutes_left: int = 0
    runners: Sequence[str] = ()
    views: Sequence[ViewState] = ()


def look(connection: psycopg.Connection[Any]) -> Frame:
    """Read the state of the platform, by a few index look-ups per symbol."""
    with connection.cursor(row_factory=dict_row) as cursor:
        gaps = cursor.execute(queries["top_open_minutes"]).fetchall()
    return Frame(
        now=get_settings().clock.now(),
        database=server_description(connection),
        symbols=symbol_status(connection),
        open_minutes={row["symbol"]: row["minutes"] for row in gaps},
        policy=policy_status(connection),
        feeds=list_heartbeats(connection),
        minutes_left=minutes_to_account(connection),
        runners=policy_runners(connection),
        views=view_states(connection),
    )


def run_top(interval: float, once: bool) -> None:
    """Show the view until Ctrl-C, or one frame with `once` or without a terminal.

    interval: seconds between two updates. Waits for the database if the connection is lost.
    Raises UserError or psycopg.Error if the database cannot be used at the start.
    """
    screen = Console(markup=False, emoji=False)
    with connect() as connection:
        prepare(connection)
        frame = look(connection)
    if once or not screen.is_terminal:
        console.out.print(render(frame, None, console.out.width, None))
        return
    with suppress(KeyboardInterrupt):
        _watch(screen, frame, interval)


def _watch(screen: Console, frame: Frame, interval: float) -> None:
    with Live(console=screen, screen=True, auto_refresh=False) as live, ExitStack() as stack:
        connection: psycopg.Connection[Any] | None = None
        while True:
            error_text: str | None = None
            try:
                connection = connection or stack.enter_context(connect(connect_timeout=3))
                frame = look(connection)
            except (psycopg.Error, UserError) as error:
                error_text = one_line(error)
                stack.close()
                connection = None
            live.update(render(frame, error_text, screen.width, screen.height), refresh=True)
            time.sleep(interval)


def render(frame: Frame, error_text: str | None, width: int, height: int | None) -> Group:
    """Lay a frame out for a terminal of this size.

    width, height: columns and lines of the terminal; without a height all symbols are shown.
    error_text: the reason why the frame is out of date, None if it is not.
    """
    header = [*_header(frame, error_text)]
    symbols = sorted(frame.symbols, key=lambda one: _badness(frame, one))
    if height is not None:
        room = max(1, height - len(header) - _AROUND)
        hidden = len(symbols) - room
        symbols = symbols[:room] if hidden > 0 else symbols
    else:
        hidden = 0
    parts: list[Text | Table] = [*header]
    if symbols:
        parts.append(_table(frame, symbols, width))
    else:
        parts.append(Text("no bars yet: `feature-platform import FILE --symbol SYMBOL`"))
    if hidden > 0:
        parts.append(Text(f"... and {hidden:,} more", style="dim"))
    for part in parts:
        if isinstance(part, Text):
            part.no_wrap, part.overflow = True, "ellipsis"
    return Group(*parts)


def _header(frame: Frame, error_text: str | None) -> list[Text]:
    lines = [
        Text.assemble(
            (f"{console.time_text(frame.now)} UTC  ", "bold"),
            f"{counted(len(frame.symbols), 'symbol')}  ",
            _count(
                "row",
                "waiting for refresh",
                sum(one.rows_dirty for one in frame.symbols),
                bad=_is_old(frame),
            ),
            "  ",
            _count("minute", "open", sum(frame.open_minutes.values()), bad=True),
            f", {frame.minutes_left:,} to account for" if frame.minutes_left else "",
        ),
    ]
    if error_text is not None:
        lines.append(Text(f"no connection, these are the last figures: {error_text}", "bold red"))
    lines.append(Text(frame.database, "dim"))
    views = [
        Text(line, "red" if at else "") for at, line in enumerate(console.view_lines(frame.views))
    ]
    lines += [_policy_line(frame), _recorder_line(frame), *views, Text()]
    return lines


def _policy_line(frame: Frame) -> Text:
    policy = frame.policy
    if policy is None:
        return Text("policy: none, features change only by `feature-platform refresh`", "red")
    parts = [f"policy: {console.runner_text(policy, frame.runners)}"]
    late = policy.last_start is None
    if policy.last_start is not None:
        ago = frame.now - policy.last_start
        late = ago > 2 * policy.schedule_interval + timedelta(seconds=15) and not policy.running
        parts.append(f"last run {console.duration(ago)} ago")
        if policy.last_wakes:
            parts.append(f"refreshes after writes: {policy.last_wakes:,}")
        parts.append(counted(policy.last_rows_written or 0, "row"))
    else:
        parts.append("no run yet")
    if policy.running:
        parts.append("running")
    line = Text(", ".join(parts), "red" if late else "")
    if policy.problem is not None:
        line.append(f"; {policy.problem}", "bold red")
    recent = policy.last_error_at is not None and frame.now - policy.last_error_at < 10 * _MINUTE
    if policy.last_error is not None and recent:
        line.append(f"; failed: {one_line(policy.last_error)}", "bold red")
    return line


def _recorder_line(frame: Frame) -> Text:
    if not frame.feeds:
        return Text("recorder: no recorder has ever run here", "dim")
    recorded = [one for one in frame.feeds if one.state != "not_recorded"]
    states = Counter(one.shown_state for one in recorded)
    if not states:
        return Text("recorder: no symbol is recorded any more", "dim")
    counts = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
    line = Text(f"recorder: {counts}", "" if states.keys() == {"live"} else "red")
    errors = [one for one in recorded if one.last_error and one.state != "live"]
    if errors:
        line.append(f"; {errors[0].symbol}: {one_line(errors[0].last_error or '')}")
    return line


def _table(frame: Frame, symbols: Sequence[SymbolStatus], width: int) -> Table:
    """Lay the symbols out, with as many columns as fit the width."""
    feeds = ("stream",) if frame.feeds else ()
    screen = Console(width=_WIDEST)
    for times in (("last bar (UTC)", "last feature (UTC)"), ("last bar (UTC)",), ()):
        made = _table_of(frame, symbols, times, feeds)
        if screen.measure(made).maximum <= width:
            return made
    return _table_of(frame, symbols, (), ())


def _table_of(
    frame: Frame, symbols: Sequence[SymbolStatus], times: Sequence[str], feed: Sequence[str]
) -> Table:
    feeds = {one.symbol: one.shown_state for one in frame.feeds}
    over = _not_recorded(frame)
    made = console.table("symbol", *times, ">bar age", ">lag", ">waiting", ">open", *feed)
    for one in symbols:
        age = None if one.last_bar is None else frame.now - one.last_bar - _MINUTE
        shown = (console.time_text(one.last_bar), console.time_text(one.last_feature))
        made.add_row(
            console.name(one.symbol),
            *shown[: len(times)],
            _age(age, over=one.symbol in over),
            _age(one.lag, over=one.symbol in over),
            Text(f"{one.rows_dirty:,}", "red" if _waits_long(frame, one) else ""),
            _number(frame.open_minutes.get(one.symbol, 0)),
            *(_state_cell(feeds.get(one.symbol)) for _ in feed),
        )
    return made


def _badness(frame: Frame, one: SymbolStatus) -> tuple[Any, ...]:
    """Order symbols: those without rows first, then by lag in seconds, then by open minutes."""
    behind = math.inf if one.lag is None else int(one.lag.total_seconds())
    over = one.symbol in _not_recorded(frame)
    return (over, -behind, -one.rows_dirty, -frame.open_minutes.get(one.symbol, 0), one.symbol)


def _not_recorded(frame: Frame) -> frozenset[str]:
    return frozenset(one.symbol for one in frame.feeds if one.state == "not_recorded")


def _age(age: timedelta | None, *, over: bool = False) -> Text:
    if over:
        return Text("-" if age is None else console.duration(max(age, timedelta())), "dim")
    if age is None:
        return Text("-", "red")
    # The age of a bar of the open minute is negative.
    return Text(console.duration(max(age, timedelta())), "red" if age > _LATE else "green")


def _state_cell(state: str | None) -> Text:
    styles = {"live": "", None: "", "not recorded": "dim"}
    return Text(state or "-", styles.get(state, "red"))


def _number(count: int) -> Text:
    return Text(f"{count:,}", "yellow" if count else "dim")


def _count(noun: str, state: str, count: int, bad: bool) -> Text:
    return Text(f"{counted(count, noun)} {state}", "red" if count and bad else "")


def _is_old(frame: Frame) -> bool:
    return any(_waits_long(frame, one) for one in frame.symbols)


def _waits_long(frame: Frame, one: SymbolStatus) -> bool:
    return one.dirty_since is not None and frame.now - one.dirty_since > _LATE
