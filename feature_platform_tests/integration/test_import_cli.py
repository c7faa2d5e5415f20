"""Guards against an import command with wrong counts, exit status or messages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

T0 = 1_769_904_000_000
HEADER = "open_time,open,high,low,close,volume"

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


@pytest.fixture
def run(database: str, tmp_path: Path) -> Run:
    """Run `feature-platform import` in a directory with a file of two bars."""
    (tmp_path / "bars.csv").write_text(
        f"{HEADER}\n{T0},10,12,9,11,5.5\n{T0 + 60_000},10,12,9,11,5.5\n", encoding="utf-8"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "feature_platform.cli.app", "import", *arguments],
            env={**os.environ, "FEATURE_PLATFORM_DATABASE_URL": database},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def cells(line: str) -> list[str]:
    return line.split()


def test_a_table_shows_the_counts_of_each_file(run: Run, conn: psycopg.Connection) -> None:
    done = run("bars.csv", "--symbol", "LINK/USDT")
    assert (done.returncode, done.stderr) == (0, "")
    _header, line = done.stdout.splitlines()
    assert cells(line)[:8] == ["bars.csv", "LINK/USDT", "2", "2", "0", "0", "0", "0"]
    assert "2026-02-01 00:00  2026-02-01 00:01" in line
    again = run("bars.csv", "bars.csv", "--symbol", "LINK/USDT")
    _header, *lines = again.stdout.splitlines()
    assert [cells(line)[0] for line in lines] == ["bars.csv", "bars.csv", "total"]
    assert cells(lines[-1])[1:8] == ["LINK/USDT", "4", "0", "0", "4", "0", "0"]
    assert conn.execute("SELECT count(*) FROM ohlcv_1m").fetchone() == (2,)


def test_a_bad_row_gets_one_line_and_exit_status_2(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "bars.csv").open("a", encoding="utf-8") as file:
        file.write("noon,10,12,9,11,5.5\n")
    done = run("bars.csv", "--symbol", "A")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("feature-platform: bars.csv:4: time 'noon' is neither a whole number")
    done = run("bars.csv", "--symbol", "A", "--skip-bad", "bad.csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "1 bad row was written to bad.csv"
    assert (tmp_path / "bad.csv").read_text(encoding="utf-8").splitlines()[1] == (
        "bars.csv,4,time 'noon' is neither a whole number nor a known form of date,"
        '"noon,10,12,9,11,5.5"'
    )


def test_a_missing_symbol_option_is_named(run: Run) -> None:
    done = run("bars.csv")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("or the column with --column-symbol NAME")


def test_columns_are_named_by_options(run: Run, tmp_path: Path, conn: psycopg.Connection) -> None:
    (tmp_path / "odd.csv").write_text(f"a;b;c;d;e;f;g\nX;{T0};1;4;0.5;2;3\n", encoding="utf-8")
    names = {
        "symbol": "a",
        "ts": "b",
        "open": "c",
        "high": "d",
        "low": "e",
        "close": "f",
        "vol": "g",
    }
    options = [part for field, name in names.items() for part in (f"--column-{field}", name)]
    assert run("odd.csv", *options).returncode == 0
    query = "SELECT symbol, open, high, low, close, vol FROM ohlcv_1m"
    assert conn.execute(query).fetchall() == [("X", 1.0, 4.0, 0.5, 2.0, 3.0)]
