"""Guards against frames of `top` that do not fit the terminal, or hide the worst symbols."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from feature_platform.cli.top import Frame, render
from feature_platform.heartbeat import StoredHeartbeat, StreamState
from feature_platform.status import PolicyStatus, SymbolStatus

NOW = datetime(2026, 2, 1, 12, 30, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
POLICY = PolicyStatus(
    start_offset=60 * MINUTE,
    end_offset=MINUTE,
    schedule_interval=MINUTE,
    runs_in="worker",
    last_runner="worker",
    last_start=NOW - timedelta(seconds=57),
    last_duration=timedelta(milliseconds=3),
    running=False,
    last_rows_written=100,
    last_slices=1,
    rows_dirty=0,
    oldest_dirty_age=None,
    last_error=None,
    last_error_at=None,
    next_run=None,
    last_wakes=2,
)


def symbol(name: str, minutes_late: int = 0, dirty: int = 0) -> SymbolStatus:
    newest = NOW.replace(second=0) - (minutes_late + 1) * MINUTE
    since = NOW - timedelta(seconds=1) if dirty else None
    return SymbolStatus(name, newest, newest, newest, dirty, since, NOW - newest - MINUTE)


def frame(
    *symbols: SymbolStatus,
    policy: PolicyStatus | None = POLICY,
    open_minutes: dict[str, int] | None = None,
) -> Frame:
    server = "PostgreSQL 18.4, database d at h:1"
    return Frame(NOW, server, symbols, open_minutes or {}, policy, runners=["worker"])


def shown(
    one: Frame, width: int = 120, height: int | None = None, trouble: str | None = None
) -> list[str]:
    screen = Console(width=width, markup=False, emoji=False)
    with screen.capture() as capture:
        screen.print(render(one, trouble, width, height))
    return [line.rstrip() for line in capture.get().splitlines()]


_POLICY_LINE = "policy: run by a worker, last run 57 s ago, refreshes after writes: 2, 100 rows"


def test_a_frame_shows_every_figure_of_each_symbol() -> None:
    lines = shown(
        frame(symbol("BTC/USDT"), symbol("ETH/USDT", 3, dirty=1440), open_minutes={"ETH/USDT": 7})
    )
    assert lines == [
        "2026-02-01 12:30:02 UTC  2 symbols  1,440 rows waiting for refresh  7 minutes open",
        "PostgreSQL 18.4, database d at h:1",
        _POLICY_LINE,
        "recorder: no recorder has ever run here",
        "",
        "symbol    last bar (UTC)    last feature (UTC)   bar age       lag  waiting  open",
        "ETH/USDT  2026-02-01 12:26  2026-02-01 12:26    3.03 min  3.03 min    1,440     7",
        "BTC/USDT  2026-02-01 12:29  2026-02-01 12:29         2 s       2 s        0     0",
    ]


def test_symbols_without_rows_and_with_the_longest_lag_are_first() -> None:
    new = SymbolStatus("NEW", NOW, NOW, None, 1, NOW, None)
    lines = shown(frame(symbol("A"), symbol("B", 5), symbol("C", dirty=2), new, symbol("D")))
    assert [line.split()[0] for line in lines[-5:]] == ["NEW", "B", "C", "A", "D"]


@pytest.mark.parametrize("width", [60, 80, 90, 100, 120, 200])
def test_no_cell_is_cut_at_any_usual_width(width: int) -> None:
    one = replace(
        frame(symbol("BTC/USDT"), symbol("LINK/USDT", 3, dirty=1440), open_minutes={"BTC/USDT": 7}),
        feeds=[feed("BTC/USDT", "live"), feed("LINK/USDT", "catching_up")],
    )
    lines = shown(one, width)
    assert "\u2026" not in "".join(lines[-3:])
    header = next(line for line in lines if line.startswith("symbol "))
    assert ("last bar (UTC)" in header) == (width >= 80)
    assert ("last feature (UTC)" in header) == (width >= 100)
    assert header.endswith("stream")
    assert lines[-1].endswith("live")


def test_a_killed_recorder_is_shown_as_silent_within_half_a_minute() -> None:
    assert feed("A", "live", 12).shown_state == "live"
    assert feed("A", "live", 26).shown_state == "silent"
    assert feed("A", "stopped", 1000).shown_state == "stopped"


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (60, 8), (20, 5)])
def test_a_frame_fits_any_terminal(width: int, height: int) -> None:
    many = frame(*(symbol(f"S{number:03d}/USDT", number) for number in range(200)))
    lines = shown(many, width, height)
    assert len(lines) <= max(height, 8)
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("... and ")
    if height >= 10:
        assert any(line.startswith("S199/USDT") for line in lines)


def feed(
    name: str, state: StreamState, age: float = 3, error: str | None = None
) -> StoredHeartbeat:
    return StoredHeartbeat(name, state, NOW, NOW, NOW, NOW, NOW, 0, error, age)


def test_the_state_of_the_recorder_is_shown_by_symbol() -> None:
    one = replace(
        frame(symbol("A"), symbol("B", 1), symbol("C", 2), symbol("D", 3)),
        feeds=[feed("A", "live"), feed("B", "down", error="no\nroute"), feed("C", "live", 99)],
    )
    lines = shown(one)
    assert "recorder: 1 live, 1 down, 1 silent; B: no route" in lines
    assert [line.split()[-1] for line in lines[-4:]] == ["-", "silent", "down", "live"]
    well = replace(one, feeds=[feed("A", "live"), feed("B", "catching_up")])
    assert "recorder: 1 live, 1 catching up" in shown(well)


def test_without_a_database_the_last_frame_and_the_error_are_shown() -> None:
    lines = shown(frame(symbol("A")), trouble="server closed the connection")
    assert lines[1].startswith("no connection, these are the last figures: server closed")
    assert lines[-1].startswith("A ")


def test_a_frame_without_symbols_and_policy_states_both() -> None:
    lines = shown(frame(policy=None))
    assert "policy: none, features change only by `feature-platform refresh`" in lines
    assert lines[-1].startswith("no bars yet")
