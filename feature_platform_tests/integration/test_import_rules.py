"""Guards against an import that silently stores wrong intervals, open bars, or no bar."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from feature_platform.errors import UserError
from feature_platform.importer import FileReport, import_bars
from feature_platform.importer.importer import ImportStoppedError
from feature_platform.importer.reader import TimeRule

Connection = psycopg.Connection[Any]
Write = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)

HEADER = "time,open,high,low,close,volume"
START = datetime(2026, 2, 1, tzinfo=UTC)
T0 = int(START.timestamp())


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*lines: str, name: str = "bars.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def run(database: str, tmp_path: Path) -> Run:
    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "feature_platform.cli.app", "import", *arguments],
            env={**os.environ, "FEATURE_PLATFORM_DATABASE_URL": database},
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run


def row(minute: int, values: str = "10,12,9,11,5.5") -> str:
    return f"{T0 + 60 * minute},{values}"


def import_one(conn: Connection, path: Path, **options: Any) -> FileReport:
    return import_bars(conn, [path], **{"symbol": "A", **options}).files[0]


def minutes(conn: Connection) -> list[int]:
    found = conn.execute("SELECT ts FROM ohlcv_1m ORDER BY ts").fetchall()
    return [int((ts - START).total_seconds()) // 60 for (ts,) in found]


# ---- interval ----


@pytest.mark.parametrize(
    ("step", "words"),
    [(5, "5 minutes"), (3, "3 minutes"), (60, "1 hour"), (240, "4 hours"), (1440, "1 day")],
)
@pytest.mark.parametrize("order", ["up", "down", "mixed"])
def test_bars_of_another_interval_are_rejected(
    conn: Connection, write: Write, step: int, words: str, order: str
) -> None:
    numbers = list(range(0, 8 * step, step))
    if order == "down":
        numbers.reverse()
    elif order == "mixed":
        numbers = numbers[::2] + numbers[1::2]
    with pytest.raises(UserError, match=f"the bars of A are {words} apart"):
        import_one(conn, write(*map(row, numbers)))
    assert minutes(conn) == []


@pytest.mark.parametrize("step", [5, 60, 2880])
def test_two_bars_of_a_usual_longer_interval_are_rejected(
    conn: Connection, write: Write, step: int
) -> None:
    with pytest.raises(UserError, match="apart"):
        import_one(conn, write(row(0), row(step)))


def test_bars_of_a_rarely_traded_symbol_are_accepted(conn: Connection, write: Write) -> None:
    report = import_one(conn, write(*map(row, [0, 1, 4, 5, 9, 11, 12, 30])))
    assert (report.inserted, report.interval) == (8, "1 minute")
    assert import_one(conn, write(row(100), row(110)), symbol="B").inserted == 2


def test_the_interval_is_checked_for_each_symbol(conn: Connection, tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    rows = [f"{row(n)},A" for n in range(20)] + [f"{row(5 * n)},B" for n in range(5)]
    path.write_text("\n".join([f"{HEADER},symbol", *rows]), encoding="utf-8")
    with pytest.raises(UserError, match="the bars of B are 5 minutes apart"):
        import_one(conn, path, symbol=None)


def test_times_without_minutes_are_rejected(conn: Connection, write: Write) -> None:
    with pytest.raises(UserError, match="the times are days without minutes"):
        import_one(conn, write("2024-01-02,10,12,9,11,5"))
    with pytest.raises(UserError, match="the times are hours without minutes"):
        import_one(conn, write("2024-01-02 07-PM,10,12,9,11,5"))


def test_ticks_are_accepted_only_with_their_option(conn: Connection, write: Write) -> None:
    path = write(*(f"{T0 + n}.25,10,12,9,11,5" for n in (0, 7, 14, 300)))
    with pytest.raises(UserError, match="is not the start of a minute"):
        import_one(conn, path)
    assert import_one(conn, path, rule=TimeRule(ticks=True)).inserted == 4


# ---- closed minutes ----


def test_bars_of_open_minutes_are_not_stored(conn: Connection, write: Write) -> None:
    (now,) = conn.execute("SELECT now()").fetchone() or (START,)
    this = now.replace(second=0, microsecond=0)
    times = [this - timedelta(minutes=2), this - timedelta(minutes=1), this + timedelta(minutes=5)]
    path = write(*(f"{int(t.timestamp())},10,12,9,11,5" for t in times))
    report = import_one(conn, path)
    assert report.inserted == 2
    assert report.unclosed == 1
    assert report.spans["A"][1] <= times[1]


# ---- several files ----


def test_files_that_contradict_each_other_are_rejected(conn: Connection, write: Write) -> None:
    first = write(row(0), row(1), row(2), name="btc.csv")
    second = write(row(1), row(2, "1,1,1,1,1"), row(3, "1,1,1,1,1"), name="eth.csv")
    with pytest.raises(ImportStoppedError) as caught:
        import_bars(conn, [first, second], symbol="A")
    message = f"{second}:3: other values for A at 2026-02-01 00:02 than in {first}"
    assert str(caught.value).startswith(message)
    assert "--overwrite" in str(caught.value)
    assert caught.value.report.files[0].inserted == 3
    assert minutes(conn) == [0, 1, 2]
    report = import_bars(conn, [first, second], symbol="A", overwrite=True)
    assert (report.files[1].inserted, report.files[1].updated) == (1, 1)


def test_files_may_overlap_with_equal_bars(conn: Connection, write: Write) -> None:
    first = write(*map(row, range(10)), name="a.csv")
    second = write(*map(row, range(5, 15)), name="b.csv")
    report = import_bars(conn, [first, second], symbol="A")
    assert [(one.inserted, one.unchanged) for one in report.files] == [(10, 0), (5, 5)]


def test_a_later_import_corrects_bars(conn: Connection, write: Write) -> None:
    import_one(conn, write(row(0)))
    assert import_one(conn, write(row(0, "1,1,1,1,1"))).updated == 1


# ---- the command line ----


def test_an_import_without_a_stored_bar_fails(run: Run, write: Write) -> None:
    write(row(0, "1,1,1,1,nan"))
    done = run("bars.csv", "--symbol", "A", "--skip-bad", "bad.csv")
    assert done.returncode == 1
    assert "bars.csv: no bar was stored: every row is bad" in done.stderr
    write()
    done = run("bars.csv", "--symbol", "A")
    assert (done.returncode, "the file has no rows" in done.stderr) == (1, True)
    write("3999999960,1,1,1,1,1")
    done = run("bars.csv", "--symbol", "A")
    assert (done.returncode, "has not ended" in done.stderr) == (1, True)
    write(row(0))
    assert run("bars.csv", "--symbol", "A").returncode == 0
    assert run("bars.csv", "--symbol", "A").returncode == 0  # all bars were stored before


def test_a_dry_run_shows_the_counts_and_stores_no_bar(
    run: Run, write: Write, conn: Connection
) -> None:
    write(*map(row, range(3)))
    assert run("bars.csv", "--symbol", "A").returncode == 0
    write(row(0, "10,12,9,11,7"), row(1), row(3), row(9, "1,2,3,4,5"), "2026-02-01 00:04,1,1,1,1,1")
    done = run("bars.csv", "--symbol", "A", "--dry-run")
    assert done.returncode == 2
    assert "these files have bad rows: an import needs --skip-bad FILE" in done.stderr
    table, *lines = done.stdout.splitlines()[1:]
    assert table.split()[1:10] == ["A", "5", "2", "1", "1", "0", "1", "0", "0"]
    for words in ("1 minute", "UTC (assumed)", "columns by name", "2026-02-01 00:04"):
        assert words in table
    assert "bad row: bars.csv:5: high 2.0 is below low 3.0" in lines
    assert "dry run: nothing was stored" in lines
    assert minutes(conn) == [0, 1, 2]
    write(row(0), row(2))
    assert run("bars.csv", "--symbol", "A", "--dry-run").returncode == 0
    assert minutes(conn) == [0, 1, 2]


def test_the_summary_is_also_shown_after_a_failed_file(run: Run, write: Write) -> None:
    write(row(0), row(1), name="a.csv")
    write(row(2), "noon,1,1,1,1,1", name="b.csv")
    done = run("a.csv", "b.csv", "--symbol", "A")
    assert done.returncode == 2
    assert done.stdout.splitlines()[1].split()[:4] == ["a.csv", "A", "2", "2"]
    assert "b.csv:3: time 'noon'" in done.stderr
    assert "1 of 2 files, before it, are stored" in done.stderr


def test_the_assumed_time_zone_is_shown(run: Run, write: Write, conn: Connection) -> None:
    write("2019-02-15 16:00:00,1,1,1,1,1")
    done = run("bars.csv", "--symbol", "A")
    assert "times without an offset are read as UTC" in done.stdout
    done = run("bars.csv", "--symbol", "B", "--timezone", "America/New_York")
    assert "America/New_York" in done.stdout.splitlines()[1]
    found = conn.execute("SELECT symbol, ts FROM ohlcv_1m ORDER BY symbol").fetchall()
    assert [ts.astimezone(UTC).hour for _, ts in found] == [16, 21]
    done = run("bars.csv", "--symbol", "C", "--timezone", "New York")
    assert (done.returncode, "--timezone New York: no such time zone" in done.stderr) == (2, True)


def test_directories_patterns_and_standard_input_are_imported(
    run: Run, write: Write, tmp_path: Path, conn: Connection
) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    write(row(0), name="in/a.csv")
    write(row(1), name="in/deep/b.csv")
    (tmp_path / "in" / "README.md").write_text("words", encoding="utf-8")
    done = run("in", "--symbol", "A")
    assert done.returncode == 0
    assert "not a file of bars, ignored: in/README.md" in done.stdout
    assert run("in/*.csv", "--symbol", "A").stdout.count("a.csv") == 1
    text = "\n".join([HEADER, row(2), row(3)]).encode()
    done = run("-", "--symbol", "A", stdin=text)
    assert (done.returncode, done.stderr) == (0, "")
    assert minutes(conn) == [0, 1, 2, 3]
    done = run("-", "--symbol", "A", stdin=text + b"\nnoon,1,1,1,1,1")
    assert "standard input:4: time 'noon'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give files to import"),
        (["--from", "binance"], "--from needs --symbol and --start, and no files"),
        (["bars.csv", "--start", "2024-01"], "--start and --end go with --from binance"),
        (["nothing*.csv", "--symbol", "A"], "nothing*.csv: no such file"),
    ],
)
def test_wrong_arguments_get_one_line(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line
