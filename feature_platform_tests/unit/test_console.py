"""Guards against times, durations, tables and lines that a terminal shows wrong."""

from __future__ import annotations

import io
import math
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from rich.console import Console
from rich.table import Table

from feature_platform.cli import console
from feature_platform.gaps import Gap
from feature_platform.heartbeat import StoredHeartbeat, StreamState
from feature_platform.status import Counts, PolicyStatus, SymbolStatus
from feature_platform.verify import Mismatch, VerifyReport

MOMENT = datetime(2026, 2, 1, 12, 30, tzinfo=UTC)


def shown(table: Table) -> list[str]:
    with console.out.capture() as capture:
        console.out.print(table)
    return capture.get().splitlines()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (MOMENT, "2026-02-01 12:30"),
        (MOMENT.replace(second=5), "2026-02-01 12:30:05"),
        (MOMENT.astimezone(timezone(timedelta(hours=-5))), "2026-02-01 12:30"),
    ],
)
def test_times_are_shown_in_utc(value: datetime | None, text: str) -> None:
    assert console.time_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0004, "0 ms"),
        (0.038, "38 ms"),
        (1, "1 s"),
        (42.4, "42.4 s"),
        (60, "1 min"),
        (3599, "60 min"),
        (3600, "1 h"),
        (3.5 * 3600, "3.5 h"),
        (86400, "1 d"),
        (268 * 86400, "268 d"),
        (12_345 * 86400, "12,345 d"),
        (-90, "-1.5 min"),
    ],
)
def test_durations_are_shown_in_their_largest_unit(seconds: float, text: str) -> None:
    assert console.duration(timedelta(seconds=seconds)) == text


def symbol(name: str) -> SymbolStatus:
    return SymbolStatus(name, MOMENT, MOMENT, MOMENT, 1234, MOMENT, timedelta(seconds=30))


def test_the_table_of_symbols_may_omit_counts() -> None:
    heading, line = shown(console.symbols_table([symbol("A")], {"A": Counts(56_789, 9)}))
    assert heading.split() == [
        *("symbol", "first", "bar", "(UTC)", "last", "bar", "(UTC)"),
        *("bars", "features", "waiting", "lag"),
    ]
    assert line.split()[5:] == ["56,789", "9", "1,234", "30", "s"]
    heading, line = shown(console.symbols_table([symbol("A")], {}))
    assert "bars" not in heading
    assert line.split()[5:] == ["1,234", "30", "s"]


def test_a_symbol_without_counts_is_shown_with_zero() -> None:
    _, a, b = shown(console.symbols_table([symbol("A"), symbol("B")], {"A": Counts(1, 2)}))
    assert a.split()[5:7] == ["1", "2"]
    assert b.split()[5:7] == ["0", "0"]


@pytest.mark.parametrize(
    "name", ["[bold]X[/]", "[/]", ":smile:", "BTC/USDT:USDT", "中文", "X" * 500]
)
def test_symbols_are_shown_unchanged_and_uncut(name: str) -> None:
    assert shown(console.symbols_table([symbol(name)], {}))[1].startswith(name)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "a\tb", "\u202eevil"])
def test_symbols_with_control_characters_are_escaped(name: str) -> None:
    _, line = shown(console.symbols_table([symbol(name)], {}))
    assert line.startswith(repr(name))


def test_values_are_shown_to_the_last_bit() -> None:
    examples = [
        Mismatch("A", "2026-01-01T00:00:00Z", "volume_z", 1 / 3, math.nextafter(1 / 3, 1)),
        Mismatch("A", "2026-01-01T00:00:00Z", "n_1d", 1440.0, None),
        Mismatch("A", "2026-01-01T00:00:00Z", "vwap_gap", math.nan, 1e-300),
    ]
    lines = shown(console.mismatch_table(VerifyReport(examples=examples)))[1:]
    assert [line.split()[4:] for line in lines] == [
        ["0.3333333333333333", "0.33333333333333337"],
        ["1440", "NULL"],
        ["nan", "1e-300"],
    ]


def policy(**changed: object) -> PolicyStatus:
    values = {
        "start_offset": timedelta(hours=1),
        "end_offset": timedelta(minutes=1),
        "schedule_interval": timedelta(minutes=1),
        "runs_in": "worker",
        "last_runner": None,
        "last_start": None,
        "last_duration": None,
        "running": False,
        "last_rows_written": None,
        "last_slices": None,
        "rows_dirty": 0,
        "oldest_dirty_age": None,
        "last_error": None,
        "last_error_at": None,
        "next_run": None,
    }
    return PolicyStatus(**{**values, **changed})  # type: ignore[arg-type]


def test_a_policy_without_a_run_names_its_runner() -> None:
    rule = "policy: runs every 1 min, refreshes rows older than 1 min, the last 1 h first; "
    assert console.policy_lines(policy(), ["worker"]) == [
        rule + "run by a worker",
        "last run: none yet",
    ]
    assert console.policy_lines(policy()) == [
        rule + "no worker is running, start `feature-platform worker`",
        "last run: none yet",
    ]
    lines = console.policy_lines(policy(runs_in="database job 1000"))
    assert lines[0].endswith("; run by database job 1000")
    assert lines[1] == "last run: none yet"


def test_a_policy_shows_its_last_run() -> None:
    ran = policy(
        last_start=MOMENT, last_duration=timedelta(milliseconds=38), last_rows_written=1440
    )
    assert console.policy_lines(ran)[1:] == [
        "last run: 2026-02-01 12:30 UTC, took 38 ms, 1,440 rows written"
    ]
    ran = policy(last_start=MOMENT, last_duration=timedelta(0), last_rows_written=7, last_wakes=2)
    assert console.policy_lines(ran)[1].endswith(", 7 rows written; refreshes after writes: 2")


def test_a_policy_shows_its_backlog_and_last_error() -> None:
    lines = console.policy_lines(
        policy(
            last_start=MOMENT,
            last_duration=timedelta(seconds=3),
            running=True,
            rows_dirty=5000,
            oldest_dirty_age=timedelta(days=2),
            last_error="no room\nfor this",
            last_error_at=MOMENT,
        )
    )
    assert lines[1:] == [
        "last run: 2026-02-01 12:30 UTC, running for 3 s, 0 rows written",
        "waiting for refresh: 5,000 rows, the oldest for 2 d",
        "last error: 2026-02-01 12:30 UTC, no room for this",
    ]


def test_a_verification_names_the_first_wrong_value() -> None:
    wrong = Mismatch("BTC/USDT", "2026-01-01T23:10:00Z", "volume_z", 1.0, 2.0)
    report = VerifyReport(symbols=1, rows=360, mismatches=1, examples=[wrong])
    assert console.verify_line(report) == (
        "verified: 1 of 360 rows is wrong: BTC/USDT 2026-01-01T23:10:00Z volume_z"
    )
    report = VerifyReport(symbols=2, rows=360)
    assert console.verify_line(report) == "verified: 360 rows of 2 symbols checked, all equal"
    report = VerifyReport(symbols=2, rows=360, pending=5)
    assert console.verify_line(report).endswith(", all equal; not compared, waiting for refresh: 5")


def test_a_missing_policy_is_stated() -> None:
    assert console.policy_lines(None) == [
        "policy: none, features change only by `feature-platform refresh`"
    ]


PROGRAM = """
from feature_platform.cli import console
with console.progress_bar("refresh") as progress:
    progress(0, 0)
    progress(5, 10)
    progress(10, 10)
print("done")
"""


def test_progress_is_shown_only_on_a_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_progress_on_a_terminal_goes_to_stderr() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        text=True,
    ) as process:
        os.close(theirs)
        output, _ = process.communicate(timeout=60)
    assert output == "done\n"
    assert b"refresh" in os.read(ours, 65536)
    os.close(ours)


ROW_BY_ROW = ["file   symbol  rows", "a.csv  A          5", "b.csv  B          6"]
ONE_BY_ONE = [
    "file    a.csv",
    "symbol  A",
    "rows    5",
    "",
    "file    b.csv",
    "symbol  B",
    "rows    6",
]


@pytest.mark.parametrize(("columns", "lines"), [(18, ONE_BY_ONE), (19, ROW_BY_ROW)])
def test_a_table_wider_than_the_terminal_is_shown_value_by_value(
    monkeypatch: pytest.MonkeyPatch, columns: int, lines: list[str]
) -> None:
    made = console.table("file", "symbol", ">rows")
    made.add_row("a.csv", "A", "5")
    made.add_row("b.csv", "B", "6")
    assert shown_at(monkeypatch, columns, made) == lines


def shown_at(monkeypatch: pytest.MonkeyPatch, columns: int, *tables: Table) -> list[str]:
    """Return the lines of the table that a terminal of so many columns shows."""
    text = io.StringIO()
    terminal = Console(file=text, width=10_000, markup=False, force_terminal=True, no_color=True)
    monkeypatch.setattr(console, "out", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    console.show(*tables)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).splitlines()
    return [line.rstrip() for line in lines]


WIDE = """
from feature_platform.cli import console
made = console.table("first", "second")
made.add_row("a" * 50, "b" * 50)
console.show(made)
"""


@pytest.mark.parametrize("term", ["dumb", "xterm"])
@pytest.mark.parametrize("columns", [80, 200])
def test_no_terminal_cuts_a_table_off(term: str, columns: int) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": str(columns)}
    subprocess.run([sys.executable, "-c", WIDE], stdout=theirs, env=environment, check=True)
    shown = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert ("a" * 50 in shown, "b" * 50 in shown) == (True, True)
    first, *_ = shown.splitlines()
    assert ("second" in first) == (columns == 200)


def test_texts_of_the_last_column_are_wrapped_and_not_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = f"{'one two ' * 20}{'x' * 100}"
    made = console.table("column", "expression", wrap_last=True)
    made.add_row("a" * 20, text)
    lines = shown_at(monkeypatch, 80, made)
    assert max(map(len, lines)) <= 80
    words = " ".join(line[22:] for line in lines[1:]).replace(" ", "")
    assert words == text.replace(" ", "")
    assert len(shown_at(monkeypatch, 400, made)) == 2
    assert shown_at(monkeypatch, 40, made)[0] == f"column      {'a' * 20}"


def test_a_month_of_a_symbol_has_one_line_of_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = {"BTC/USDT": Counts(44_640, 44_640)}
    made = console.symbols_table([symbol("BTC/USDT")], counts)
    heading, line = shown_at(monkeypatch, 80, made)
    assert len(heading) <= 80
    assert line.split()[5:] == ["44,640", "44,640", "1,234", "30", "s"]


def test_a_narrow_terminal_shows_symbols_without_the_first_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = {name: Counts(2_628_000, 2_628_000) for name in ("A", "kraken:MATIC/USDT")}
    both = [symbol(name) for name in counts]
    tables = [console.symbols_table(both, counts, first=first) for first in (True, False)]
    heading, *lines = shown_at(monkeypatch, 80, *tables)
    assert "last bar (UTC)" in heading
    assert "first bar" not in heading
    assert len(lines) == 2
    assert shown_at(monkeypatch, 200, *tables)[0].split()[1:3] == ["first", "bar"]
    assert "first bar (UTC)  2026-02-01 12:30" in shown_at(monkeypatch, 40, *tables)


def test_gaps_of_a_long_symbol_fit_80_columns_with_their_errors_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = MOMENT + timedelta(minutes=60_000)
    error = "binance answers 503 Service Unavailable"
    tried = Gap("A", MOMENT, later, "unavailable", MOMENT, MOMENT, 10, None, error, "dead")
    untried = Gap("B", MOMENT, later, "not_recorded", MOMENT, MOMENT, 0, None, None, "alive")
    gaps = [tried, tried, untried]
    assert error in "\n".join(shown_at(monkeypatch, 200, *console.gaps_tables(gaps)))
    heading, *lines = shown_at(monkeypatch, 80, *console.gaps_tables(gaps))
    assert (heading.split()[-1], len(lines)) == ("attempts", 3)
    long = [replace(gap, symbol="kraken:MATIC/USDT") for gap in gaps]
    heading, *lines = shown_at(monkeypatch, 80, *console.gaps_tables(long))
    assert (heading.split()[-1], len(lines)) == ("state", 3)
    assert console.gap_errors(gaps) == [f"last error: A 2026-02-01 12:30: {error}"]


def feed(state: StreamState, error: str | None) -> StoredHeartbeat:
    return StoredHeartbeat("A/B", state, MOMENT, None, None, None, MOMENT, 0, error, 2.0)


def test_the_recorder_and_its_newest_error_have_one_line_each() -> None:
    assert console.recorder_lines([]) == []
    live = feed("live", "an error that is over")
    assert console.recorder_lines([live, live]) == [
        "recorder: 2 symbols, 2 live; last heartbeat 2 s ago"
    ]
    assert console.recorder_lines([live, feed("catching_up", "no answer")]) == [
        "recorder: 2 symbols, 1 catching up, 1 live; last heartbeat 2 s ago",
        "recorder: A/B: no answer",
    ]
