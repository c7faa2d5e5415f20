"""Guards against a demo that fails on a new machine, or that changes another database."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import psycopg
import pytest

from feature_platform.dev.demo_bars import SYMBOLS, write_files
from feature_platform.embedded.server import EmbeddedServer
from feature_platform.errors import UserError
from feature_platform.plot import plot_features
from feature_platform.refresh import refresh
from feature_platform_tests.fix_embedded import CHECKOUT, is_running
from feature_platform_tests.fix_environment import passable_directory
from feature_platform_tests.fix_processes import insert_bars, only_line, run
from feature_platform_tests.integration.test_verify import START

HEADING = "open_time,open,high,low,close,volume\n"
SHARED = CHECKOUT.parent / "shared" / "data"

LINES = (
    r"PostgreSQL 18\.\d+, database demo at .+/postgres\.socket",
    r"imported: ([\d,]+) bars new, 0 corrected, 0 unchanged, [\d.]+ s, [\d,]+ bars/s",
    r"refreshed: ([\d,]+) feature rows written, [\d.]+ s, [\d,]+ rows/s",
)
LATE = (
    r"late bars and corrections: 540 bars new, 120 corrected, 0 unchanged, [\d.]+ s, [\d,]+ bars/s",
    r"repaired: [\d,]+ feature rows written, [\d.]+ s, [\d,]+ rows/s",
)
VERIFIED = r"verified: ([\d,]+) rows? of \d+ symbols? checked, all equal"


@pytest.fixture(scope="module")
def running() -> Iterator[EmbeddedServer]:
    """Yield a running server of a home, because its start takes longer than a small demo."""
    with (
        passable_directory() as parent,
        EmbeddedServer(parent / "home", conf={"fsync": "off"}) as server,
    ):
        yield server


def demo(home: Path, *files: Path, **environment: str) -> list[str]:
    """Run the demo and return the lines that it printed."""
    done = run("demo", *files, FEATURE_PLATFORM_HOME=str(home), **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def assert_lines(lines: list[str], *patterns: str) -> list[int]:
    """Check the first lines against patterns; return the numbers in their groups."""
    numbers: list[int] = []
    for line, pattern in zip(lines, patterns, strict=False):
        match = re.fullmatch(pattern, line)
        assert match, line
        numbers += [int(group.replace(",", "")) for group in match.groups()]
    return numbers


def assert_picture(path: Path) -> None:
    """Check that a file is a picture that is not empty."""
    picture = matplotlib.image.imread(path)
    height, width, _ = picture.shape
    assert height > 400
    assert width > 400
    ink = float(np.mean(np.any(picture[:, :, :3] < 0.9, axis=2)))
    assert 0.01 < ink < 0.6
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50


def table_after(lines: list[str], heading: str) -> list[list[str]]:
    """Return the rows below the line that begins with `heading`, up to an empty one."""
    (at,) = (number for number, line in enumerate(lines) if line.startswith(heading))
    rows = []
    for line in lines[at + 1 :]:
        if not line.strip():
            break
        rows.append(line.split())
    return rows


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_the_demo_shows_a_month_and_changes_no_other_database(
    running: EmbeddedServer, empty_database: str
) -> None:
    home = running.home
    with psycopg.connect(running.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS x")
    lines = demo(home, FEATURE_PLATFORM_DATABASE_URL=empty_database)
    bars, rows, verified = assert_lines(lines, *LINES, *LATE, VERIFIED)
    assert bars == rows == verified - 540
    symbols = table_after(lines, "symbol ")
    assert [row[0] for row in symbols] == [one.symbol for one in SYMBOLS]
    for row in symbols:
        assert row[1:5] == ["2026-01-01", "00:00", "2026-01-31", "23:59"]
        assert row[5:8] == ["44,490", "44,490", "0"]
    features = table_after(lines, "UTC ")
    assert len(features) == 6
    assert {tuple(row[:2]) for row in features} == {("01-31", "23:59"), ("01-31", "23:58")}
    assert all(len(row) == 8 and "NULL" not in row for row in features)
    assert lines[-1] == f"plot: {home}/demo.png"
    assert_picture(home / "demo.png")
    with psycopg.connect(running.url()) as connection:
        tables = connection.execute("SELECT relname FROM pg_stat_user_tables").fetchall()
        assert tables == [("mine",)]
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT relname FROM pg_stat_user_tables").fetchall() == []


def test_the_demo_can_be_repeated_and_stops_its_server(home: Path, tmp_path: Path) -> None:
    for name in ("ALGOUSDT", "LINKUSDT"):
        file = tmp_path / f"{name}-1m.csv"
        file.write_text(f"{HEADING}1767225600000,1,2,1,2,5\n")
        lines = demo(home, file)
        assert_lines(lines, *LINES, VERIFIED)
        assert [row[0] for row in table_after(lines, "symbol ")] == [name]
        assert table_after(lines, "UTC ") == [
            ["01-01", "00:00", name, "2", "NULL", "NULL", "0.5", "0.24023"]
        ]
        (home / "demo.png").unlink()  # a plot of one minute is no error
        assert not is_running(home)


def test_the_demo_shows_real_files(running: EmbeddedServer) -> None:
    files = sorted(SHARED.glob("*.csv.gz"))
    if not files:
        pytest.skip("../shared/data has no files")
    lines = demo(running.home, *files)
    bars, rows, verified = assert_lines(lines, *LINES, VERIFIED)
    assert bars == rows == verified
    assert len(table_after(lines, "symbol ")) == len(files)
    assert_picture(running.home / "demo.png")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{HEADING}1767225600000,1,2,3,2,5\n", "bad.csv:2: "),
        ("nothing that is a bar\n", "bad.csv"),
        ("", "bad.csv"),
    ],
)
def test_a_bad_file_gets_one_line(
    running: EmbeddedServer, tmp_path: Path, text: str, reason: str
) -> None:
    good, bad = tmp_path / "GOOD.csv", tmp_path / "bad.csv"
    good.write_text(f"{HEADING}1767225600000,1,2,1,2,5\n")
    bad.write_text(text)
    done = run("demo", good, bad, FEATURE_PLATFORM_HOME=str(running.home))
    assert done.returncode == 2
    assert reason in only_line(done.stderr)
    assert len(done.stdout.splitlines()) == 1  # the name of the database


def test_bars_of_the_future_have_no_features_and_no_plot(
    running: EmbeddedServer, tmp_path: Path
) -> None:
    file = tmp_path / "FUTURE.csv"
    file.write_text(f"{HEADING}4070908800000,1,2,1,2,5\n")  # the year 2099
    lines = demo(running.home, file)
    assert table_after(lines, "UTC ") == []
    assert not any(line.startswith("plot: ") for line in lines)


def test_the_generated_files_are_equal_in_every_run(tmp_path: Path) -> None:
    def contents(name: str) -> list[bytes]:
        (tmp_path / name).mkdir()
        files = write_files(tmp_path / name)
        return [
            gzip.decompress(path.read_bytes()) for one in files for path in (one.month, one.late)
        ]

    assert contents("first") == contents("second")


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_any_symbol_and_history_can_be_plotted(
    conn: psycopg.Connection[object], tmp_path: Path
) -> None:
    names = ["one minute", "gaps $\\alpha_$", "[/]"]
    insert_bars(conn, names[0], START, 1)
    insert_bars(conn, names[1], START, 300, step=17)
    insert_bars(conn, names[2], START, 3000)
    refresh(conn)
    assert plot_features(conn, names, tmp_path / "plot.png") == tmp_path / "plot.png"
    assert_picture(tmp_path / "plot.png")
    with pytest.raises(UserError, match=r"^there are no features of 'unknown' to plot$"):
        plot_features(conn, ["unknown"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
