"""An import that is killed, or stopped with Ctrl-C, stores nothing of the file in hand."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from feature_platform_tests.fix_processes import PATIENCE, wait_until

ROWS = 20_000
T0 = 1_769_904_000_000

# Imports two files; in a phase of the second, prints its name and waits for a line of input.
PROGRAM = """
import sys
from pathlib import Path
import psycopg
from feature_platform.importer import import_bars

url, phase, skip, *paths = sys.argv[1:]

def tell(progress):
    if progress.path == Path(paths[-1]) and progress.phase == phase:
        print(phase, flush=True)
        sys.stdin.readline()

with psycopg.connect(url, autocommit=True) as conn:
    try:
        import_bars(
            conn,
            list(map(Path, paths)),
            symbol="A",
            overwrite=True,
            skip_bad=Path(skip),
            progress=tell,
        )
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Write a file of one good and one bad row, and a large one."""
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text(f"{T0},1,1,1,1,1\n{T0},2,1,1,1,1\n", encoding="utf-8")
    rows = (f"{T0 + number * 60_000},2,2,2,2,2\n" for number in range(ROWS))
    second.write_text("".join([*rows, "bad,2,2,2,2,2\n"]), encoding="utf-8")
    return [first, second]


@contextmanager
def importing(
    database: str, phase: str, files: list[Path], skip: Path
) -> Iterator[subprocess.Popen[str]]:
    """Start an import, and wait until it has come to the phase in the second file."""
    command = [sys.executable, "-c", PROGRAM, database, phase, str(skip), *map(str, files)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"{phase}\n"
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def interrupt(process: subprocess.Popen[str]) -> None:
    """Send SIGINT, and let the process go on.

    Python acts on a signal only between its instructions, so a signal that arrives just before a
    blocking read does not end the read; the end of the input does.
    """
    process.send_signal(signal.SIGINT)
    assert process.stdin is not None
    process.stdin.close()


def stored_in_the_end(database: str) -> list[float]:
    """Return the prices once no transaction of an importer is left."""
    with psycopg.connect(database) as conn:
        conn.execute("LOCK TABLE ohlcv_1m IN ACCESS EXCLUSIVE MODE")
        return [price for (price,) in conn.execute("SELECT open FROM ohlcv_1m ORDER BY open")]


@pytest.mark.parametrize("phase", ["reading", "storing"])
def test_a_kill_stores_nothing_of_the_file(
    database: str, files: list[Path], tmp_path: Path, phase: str
) -> None:
    skip = tmp_path / "skipped.csv"
    with importing(database, phase, files, skip) as process:
        process.kill()
        process.wait()
    assert stored_in_the_end(database) == [1.0]
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_a_kill_in_the_middle_of_the_storing(
    database: str, files: list[Path], tmp_path: Path
) -> None:
    with (
        psycopg.connect(database) as blocker,
        importing(database, "storing", files, tmp_path / "skipped.csv") as process,
    ):
        # The INSERT is sent, and held up at its last row, when its sender dies.
        last = T0 / 1000 + (ROWS - 1) * 60
        blocker.execute(
            "INSERT INTO ohlcv_1m VALUES ('A', to_timestamp(%s), 3, 3, 3, 3, 3)", (last,)
        )
        go_on(process)
        wait_for_a_waiter(database)
        process.kill()
        process.wait()
        blocker.commit()
    assert stored_in_the_end(database) == [1.0, 3.0]


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize("phase", ["reading", "storing"])
def test_ctrl_c_stores_nothing_of_the_file(
    database: str, files: list[Path], tmp_path: Path, phase: str
) -> None:
    skip = tmp_path / "skipped.csv"
    with importing(database, phase, files, skip) as process:
        interrupt(process)
        assert process.wait(PATIENCE) == 130
    assert stored_in_the_end(database) == [1.0]
    # The rejected row of the stored file is in the file of bad rows.
    assert [line.split(",")[1] for line in skip.read_text(encoding="utf-8").splitlines()] == [
        "line",
        "2",
    ]
    assert sorted(tmp_path.iterdir()) == sorted([*files, skip])


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_ctrl_c_in_the_middle_of_the_storing(
    database: str, files: list[Path], tmp_path: Path
) -> None:
    with (
        psycopg.connect(database) as blocker,
        importing(database, "storing", files, tmp_path / "skipped.csv") as process,
    ):
        blocker.execute("LOCK TABLE ohlcv_1m IN SHARE MODE")
        go_on(process)
        wait_for_a_waiter(database)
        interrupt(process)
        assert process.wait(PATIENCE) == 130
    assert stored_in_the_end(database) == [1.0]


def wait_for_a_waiter(database: str) -> None:
    """Wait until a session of the database waits for a lock."""
    query = """SELECT FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'"""
    with psycopg.connect(database, autocommit=True) as conn:
        wait_until(lambda: conn.execute(query).fetchone() is not None, "a session waits")
