"""Guards against bars of a file that an import loses, changes, or stores in part."""

from __future__ import annotations

import csv
import gzip
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from feature_platform.errors import UserError
from feature_platform.importer import FileReport, Progress, import_bars, importer, reader
from feature_platform.importer.reader import ColumnMap, TimeRule

Connection = psycopg.Connection[Any]

DATA = Path(__file__).parents[2].parent / "shared" / "data"
T0 = 1_769_904_000_000  # 2026-02-01 00:00 UTC, in milliseconds
START = datetime(2026, 2, 1, tzinfo=UTC)
HEADER = "open_time,open,high,low,close,volume"


def minute(number: int) -> datetime:
    return START + timedelta(minutes=number)


def row(number: int, values: str = "10,12,9,11,5.5") -> str:
    return f"{T0 + number * 60_000},{values}"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str, name: str = "bars.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


Write = Callable[..., Path]


def counts(report: FileReport) -> tuple[int, ...]:
    parts = (report.inserted, report.updated, report.unchanged, report.duplicates, report.bad)
    assert sum(parts) + report.empty + report.unclosed == report.rows
    return parts


def import_one(conn: Connection, path: Path, **options: Any) -> FileReport:
    options.setdefault("symbol", "A")
    report = import_bars(conn, [path], **options)
    assert report.files == (report.files[0],)
    return report.files[0]


def stored(conn: Connection) -> list[tuple[Any, ...]]:
    query = "SELECT symbol, ts, open, high, low, close, vol FROM ohlcv_1m ORDER BY symbol, ts"
    return conn.execute(query).fetchall()


def versions(conn: Connection) -> dict[tuple[str, datetime], tuple[Any, ...]]:
    """Return the system columns of each row, which change by a write or a lock."""
    query = "SELECT symbol, ts, xmin::text, xmax::text, ctid::text, inserted_at FROM ohlcv_1m"
    return {(symbol, ts): tuple(rest) for symbol, ts, *rest in conn.execute(query)}


def dirty_marks(conn: Connection) -> int:
    found = conn.execute("SELECT count(*) FROM feature_platform.dirty_log").fetchone()
    assert found is not None
    return int(found[0])


BAR = (10.0, 12.0, 9.0, 11.0, 5.5)


def test_new_bars_are_stored_and_counted(conn: Connection, write: Write) -> None:
    path = write(HEADER, row(0), row(1), row(5, "10,12,9,11,0"))
    report = import_one(conn, path, symbol="LINK/USDT")
    assert counts(report) == (3, 0, 0, 0, 0)
    assert report.path == path
    assert report.spans == {"LINK/USDT": (minute(0), minute(5))}
    assert report.seconds > 0
    assert report.bars_per_second == pytest.approx(3 / report.seconds)
    assert stored(conn) == [
        ("LINK/USDT", minute(0), *BAR),
        ("LINK/USDT", minute(1), *BAR),
        ("LINK/USDT", minute(5), *BAR[:-1], 0.0),
    ]
    about = conn.execute(
        "SELECT DISTINCT source, inserted_at > now() - '1 hour'::interval FROM ohlcv_1m"
    )
    assert about.fetchall() == [("import", True)]


def test_a_second_import_of_a_file_writes_no_row(conn: Connection, write: Write) -> None:
    path = write(HEADER, *(row(number) for number in range(3000)))
    import_one(conn, path)
    before, marks = versions(conn), dirty_marks(conn)
    assert counts(import_one(conn, path)) == (0, 0, 3000, 0, 0)
    assert versions(conn) == before
    assert dirty_marks(conn) == marks


def test_a_correction_writes_only_the_changed_rows(conn: Connection, write: Write) -> None:
    import_one(conn, write(HEADER, *(row(number) for number in range(100))))
    before = versions(conn)
    lines = [
        row(number, "10,12,9,11,7" if number in (20, 50) else "10,12,9,11,5.5")
        for number in range(50, 150)
    ]
    report = import_one(conn, write(HEADER, row(20, "10,12,9,10.5,5.5"), *lines))
    assert counts(report) == (50, 2, 49, 0, 0)
    after = versions(conn)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {("A", minute(20)), ("A", minute(50))}
    assert all(after[key][-1] > before[key][-1] for key in changed)
    assert stored(conn)[20] == ("A", minute(20), 10.0, 12.0, 9.0, 10.5, 5.5)
    assert stored(conn)[50] == ("A", minute(50), 10.0, 12.0, 9.0, 11.0, 7.0)


def test_a_streamed_bar_keeps_its_source_unless_it_is_corrected(
    conn: Connection, write: Write
) -> None:
    for number in (0, 1):
        conn.execute(
            "INSERT INTO ohlcv_1m VALUES ('A', %s, 10, 12, 9, 11, 5.5, 'stream')", (minute(number),)
        )
    path = write(HEADER, row(0), row(1, "10,12,9,11,6"), row(2))
    assert counts(import_one(conn, path, source="rest")) == (1, 1, 1, 0, 0)
    sources = conn.execute("SELECT source FROM ohlcv_1m ORDER BY ts").fetchall()
    assert sources == [("stream",), ("rest",), ("rest",)]


def test_bars_of_other_symbols_and_times_are_not_changed(conn: Connection, write: Write) -> None:
    import_one(conn, write(HEADER, row(5)), symbol="A")
    import_one(conn, write(HEADER, row(0), row(9)), symbol="B")
    assert counts(import_one(conn, write(HEADER, row(4), row(6)), symbol="A")) == (2, 0, 0, 0, 0)
    assert counts(import_one(conn, write(HEADER, row(4), row(5)), symbol="B")) == (2, 0, 0, 0, 0)


@pytest.mark.parametrize("order", ["by time", "by symbol", "backwards"])
def test_a_file_of_many_symbols_is_stored_in_any_order(
    conn: Connection, write: Write, order: str
) -> None:
    keys = [(number, f"S{symbol}/USDT") for number in range(200) for symbol in range(20)]
    if order == "by symbol":
        keys.sort(key=lambda key: key[1])
    elif order == "backwards":
        keys.reverse()
    path = write(HEADER + ",symbol", *(f"{row(number)},{symbol}" for number, symbol in keys))
    report = import_one(conn, path, symbol=None)
    assert counts(report) == (4000, 0, 0, 0, 0)
    assert report.spans == {f"S{symbol}/USDT": (minute(0), minute(199)) for symbol in range(20)}
    expected = sorted((symbol, minute(number), *BAR) for number, symbol in keys)
    assert stored(conn) == expected
    before = versions(conn)
    assert counts(import_one(conn, path, symbol=None)) == (0, 0, 4000, 0, 0)
    assert versions(conn) == before


def test_a_file_of_many_symbols_corrects_a_stored_bar(conn: Connection, write: Write) -> None:
    lines = [f"{row(number)},S{symbol}" for number in range(10) for symbol in range(3)]
    import_one(conn, write(HEADER, row(3, "1,1,1,1,1")), symbol="S1")
    report = import_one(conn, write(HEADER + ",symbol", *lines), symbol=None)
    assert counts(report) == (29, 1, 0, 0, 0)


def test_ticks_inside_a_minute_are_stored_with_the_option(conn: Connection, write: Write) -> None:
    path = write(HEADER, f"{T0},1,1,1,1,1", f"{T0 + 1},1,1,1,1,1", f"{T0 + 59_999},1,1,1,1,1")
    assert counts(import_one(conn, path, rule=TimeRule(ticks=True))) == (3, 0, 0, 0, 0)


def test_a_parquet_file_is_stored(conn: Connection, tmp_path: Path) -> None:
    path = tmp_path / "bars"
    times = pa.array([minute(0), minute(1)], pa.timestamp("us", "UTC"))
    columns = {"ts": times, "price": [10.0, 11.0], "vol": [1.0, 2.0], "symbol": ["A", "B"]}
    pq.write_table(pa.table(columns), path)
    names = ColumnMap(open="price", high="price", low="price", close="price")
    import_one(conn, path, symbol=None, columns=names)
    assert stored(conn) == [
        ("A", minute(0), 10.0, 10.0, 10.0, 10.0, 1.0),
        ("B", minute(1), 11.0, 11.0, 11.0, 11.0, 2.0),
    ]


def test_a_file_without_bars_stores_no_row(conn: Connection, write: Write) -> None:
    report = import_one(conn, write(HEADER))
    assert counts(report) == (0, 0, 0, 0, 0)
    assert report.spans == {}


def test_duplicates_are_harmless_and_counted(conn: Connection, write: Write) -> None:
    path = write(HEADER, row(1), row(0), row(1), row(0), row(1), row(2))
    assert counts(import_one(conn, path)) == (3, 0, 0, 3, 0)
    assert counts(import_one(conn, path)) == (0, 0, 3, 3, 0)
    assert [ts for _, ts, *_ in stored(conn)] == [minute(0), minute(1), minute(2)]


# ---- bad rows ----


def test_a_bad_row_stops_the_file(conn: Connection, write: Write) -> None:
    path = write(HEADER, row(0), "", row(1, "10,9,9,11,5.5"), row(2), row(3, "x,9,9,11,5.5"))
    with pytest.raises(UserError) as caught:
        import_one(conn, path)
    assert str(caught.value) == (
        f"{path}:4: high 9.0 is below open 10.0 (2 bad rows in total; nothing of the file is "
        "stored; --skip-bad FILE stores the good rows and writes the bad ones there)"
    )
    assert stored(conn) == []
    assert dirty_marks(conn) == 0


def test_the_message_names_the_only_bad_row(conn: Connection, write: Write) -> None:
    with pytest.raises(UserError, match=r"bars\.csv:2: vol is missing \(the only bad row; "):
        import_one(conn, write(HEADER, row(0, "10,12,9,11,"), row(1)))


def test_contradicting_rows_stop_the_file(conn: Connection, write: Write) -> None:
    lines = [row(number) for number in range(10)]
    path = write(HEADER, *lines, row(3, "10,12,9,11,6"), row(4), row(5, "10,12,9,11,6"), "x")
    with pytest.raises(UserError) as caught:
        import_one(conn, path)
    reason = "12: other values than line 5 for the same symbol and time (3 bad rows in total;"
    assert str(caught.value).startswith(f"{path}:{reason}")
    assert stored(conn) == []


def test_skipped_rows_are_written_to_the_file_of_bad_rows(
    conn: Connection, write: Write, tmp_path: Path
) -> None:
    lines = [row(0), row(1, "10,12,9,11,-1"), row(2), row(0, "10,12,9,11,6"), row(2), '"a,"']
    path, skipped = write(HEADER, *lines), tmp_path / "skipped.csv"
    report = import_one(conn, path, skip_bad=skipped)
    assert counts(report) == (2, 0, 0, 1, 3)
    assert [ts for _, ts, *_ in stored(conn)] == [minute(0), minute(2)]
    assert stored(conn)[0][-1] == 5.5
    with skipped.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "line", "reason", "text"],
            [str(path), "3", "vol is -1.0, below 0", lines[1]],
            [str(path), "7", "1 fields where 6 are expected", '"a,"'],
            [str(path), "5", "other values than line 2 for the same symbol and time", lines[3]],
        ]
    assert sorted(tmp_path.iterdir()) == [path, skipped]


def test_contradictions_between_the_files_of_a_zip_are_rejected(
    conn: Connection, tmp_path: Path
) -> None:
    path, skipped = tmp_path / "bars.zip", tmp_path / "skipped.csv"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "\n".join([HEADER, row(0), row(1), "x"]))
        archive.writestr("b.csv", "\n".join([row(2), row(1, "10,12,9,11,6"), row(0)]))
    assert counts(import_one(conn, path, skip_bad=skipped)) == (3, 0, 0, 1, 2)
    with skipped.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[2] == [
            f"{path}!b.csv",
            "2",
            f"other values than {path}!a.csv:3 for the same symbol and time",
            row(1, "10,12,9,11,6"),
        ]


def test_a_zip_may_have_two_files_of_one_name(conn: Connection, tmp_path: Path) -> None:
    path, skipped = tmp_path / "bars.zip", tmp_path / "skipped.csv"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "\n".join([HEADER, row(0), row(1)]))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.csv", "\n".join([HEADER, row(1), row(0, "10,12,9,11,6")]))
    assert counts(import_one(conn, path, skip_bad=skipped)) == (2, 0, 0, 1, 1)
    assert stored(conn)[0][-1] == 5.5


def test_a_file_that_changes_during_the_import_is_rejected(conn: Connection, write: Write) -> None:
    path = write(HEADER, row(0), row(1), row(0, "10,12,9,11,6"))

    def change(_progress: Progress) -> None:
        write(HEADER, row(0))

    with pytest.raises(UserError, match=r"bars\.csv: the file was changed while it was read"):
        import_one(conn, path, progress=change)
    assert stored(conn) == []


def test_contradictions_in_a_large_file_are_all_listed(
    conn: Connection, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the text of each row, also from other pieces of the file."""
    monkeypatch.setattr(importer, "read_file", partial(reader.read_file, batch_rows=50))
    wrong = range(0, 2000, 7)
    path = write(HEADER, *(row(n) for n in range(2000)), "", *(row(n, "1,1,1,1,1") for n in wrong))
    skipped = tmp_path / "skipped.csv"
    assert counts(import_one(conn, path, skip_bad=skipped)) == (2000, 0, 0, 0, len(wrong))
    with skipped.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [int(one["line"]) for one in found] == [2003 + at for at in range(len(wrong))]
    assert [one["text"] for one in found] == [row(n, "1,1,1,1,1") for n in wrong]
    assert [one["reason"].split()[4] for one in found] == [str(n + 2) for n in wrong]


def test_without_bad_rows_no_file_of_bad_rows_is_created(
    conn: Connection, write: Write, tmp_path: Path
) -> None:
    path = write(HEADER, row(0))
    import_one(conn, path, skip_bad=tmp_path / "skipped.csv")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_bad_rows_is_never_overwritten(
    conn: Connection, write: Write, tmp_path: Path
) -> None:
    skipped = write("precious", name="skipped.csv")
    with pytest.raises(UserError, match=r"skipped\.csv: exists already"):
        import_one(conn, write(HEADER, row(0), "x"), skip_bad=skipped)
    assert stored(conn) == []
    with pytest.raises(UserError, match=r"the directory .* does not exist"):
        import_one(conn, write(HEADER), skip_bad=tmp_path / "absent" / "skipped.csv")

    late = tmp_path / "late.csv"

    def make_it(_progress: Progress) -> None:
        late.write_text("precious", encoding="utf-8")

    with pytest.raises(UserError, match=r"late\.csv: another process has made this file"):
        import_one(conn, write(HEADER, row(0), "x"), skip_bad=late, progress=make_it)
    assert late.read_text(encoding="utf-8") == "precious"
    (partial,) = tmp_path.glob(".late.csv.*.partial")
    assert "1 fields" in partial.read_text(encoding="utf-8")


def test_only_bad_rows_of_stored_files_are_listed(
    conn: Connection, write: Write, tmp_path: Path
) -> None:
    good = write(HEADER, row(0), "x", name="good.csv")
    cut = tmp_path / "cut.csv.gz"
    packed = gzip.compress("\n".join([HEADER, "y", *map(row, range(5000))]).encode())
    cut.write_bytes(packed[:-100])
    skipped = tmp_path / "skipped.csv"
    with pytest.raises(UserError, match=r"cut\.csv\.gz: .*; 1 of 2 files, before it, are stored"):
        import_bars(conn, [good, cut], symbol="A", skip_bad=skipped)
    assert [ts for _, ts, *_ in stored(conn)] == [minute(0)]
    with skipped.open(encoding="utf-8", newline="") as file:
        assert [one["text"] for one in csv.DictReader(file)] == ["x"]
    assert sorted(tmp_path.iterdir()) == [cut, good, skipped]


# ---- several files ----


def test_several_files_are_imported_in_order(conn: Connection, write: Write) -> None:
    first = write(HEADER, row(0), row(1), row(2), name="first.csv")
    second = write(HEADER, row(2, "1,1,1,1,1"), row(3), row(3), name="second.csv")
    progress: list[Progress] = []
    report = import_bars(
        conn, [first, second], symbol="A", overwrite=True, progress=progress.append
    )
    assert [counts(one) for one in report.files] == [(3, 0, 0, 0, 0), (1, 1, 0, 1, 0)]
    assert counts(report.total) == (4, 1, 0, 1, 0)
    assert report.total.spans == {"A": (minute(0), minute(3))}
    assert [(one.path, one.phase, one.share, one.rows) for one in progress] == [
        (first, "reading", 1.0, 3),
        (first, "storing", 1.0, 3),
        (first, "stored", 1.0, 3),
        (second, "reading", 1.0, 3),
        (second, "storing", 1.0, 3),
        (second, "stored", 1.0, 3),
    ]


def test_files_before_a_bad_one_stay_stored(conn: Connection, write: Write) -> None:
    good = write(HEADER, row(0), name="good.csv")
    bad = write(HEADER, row(1), "x", name="bad.csv")
    with pytest.raises(UserError, match=r"bad\.csv:3: .*; 1 of 3 files, before it, are stored"):
        import_bars(conn, [good, bad, good], symbol="A")
    assert [ts for _, ts, *_ in stored(conn)] == [minute(0)]


def test_a_missing_file_is_reported_before_any_row_is_stored(
    conn: Connection, write: Write, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"absent\.csv: no such file"):
        import_bars(conn, [write(HEADER, row(0)), tmp_path / "absent.csv"], symbol="A")
    assert stored(conn) == []


# ---- the database ----


def test_a_connection_in_a_transaction_is_rejected(database: str, write: Write) -> None:
    with psycopg.connect(database) as conn:
        import_one(conn, write(HEADER, row(0)))
        conn.execute("SELECT 1")
        with pytest.raises(ValueError, match="outside of a transaction"):
            import_one(conn, write(HEADER, row(1)))
    with psycopg.connect(database) as conn:
        assert len(stored(conn)) == 1


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_the_error_of_a_database_without_the_schema_names_the_remedy(
    empty_database: str, write: Write
) -> None:
    with (
        psycopg.connect(empty_database, autocommit=True) as conn,
        pytest.raises(UserError, match=r"not set up: run `feature-platform db apply` first"),
    ):
        import_one(conn, write(HEADER, row(0)))


def test_a_bar_that_the_table_rejects_gets_one_line(conn: Connection, write: Write) -> None:
    conn.execute("ALTER TABLE ohlcv_1m ADD CONSTRAINT cheap CHECK (open < 10)")
    with pytest.raises(
        UserError, match=r"^\S+bars\.csv: nothing of it is stored: .*cheap"
    ) as caught:
        import_one(conn, write(HEADER, row(0)))
    assert "\n" not in str(caught.value)


def test_a_lost_connection_gets_one_line(conn: Connection, database: str, write: Write) -> None:
    path = write(HEADER, *map(row, range(1000)))

    def cut(_progress: Progress) -> None:
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", (conn.info.backend_pid,))

    with pytest.raises(
        psycopg.OperationalError, match=r"^\S+bars\.csv: nothing of it is stored"
    ) as caught:
        import_one(conn, path, progress=cut)
    assert "\n" not in str(caught.value)
    with psycopg.connect(database, autocommit=True) as other:
        assert stored(other) == []


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_lack_of_disk_space_gets_one_line(conn: Connection, write: Write) -> None:
    conn.execute("SET work_mem = '64kB'")
    conn.execute("SET temp_file_limit = '100kB'")
    path = write(HEADER, *map(row, range(20_000, 0, -1)))
    with pytest.raises(
        psycopg.OperationalError, match=r"^\S+bars\.csv: nothing of it is stored: .*temp_file_limit"
    ) as caught:
        import_one(conn, path)
    assert "\n" not in str(caught.value)
    assert stored(conn) == []


def test_after_a_failed_commit_the_message_states_both_outcomes(
    conn: Connection, write: Write
) -> None:
    """If the connection is lost during the commit, the file may be stored or not."""
    conn.execute(
        """CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"""
    )
    conn.execute(
        """CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON ohlcv_1m DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION cut()"""
    )
    with pytest.raises(
        psycopg.OperationalError, match=r"the whole file is stored or nothing; import it again"
    ):
        import_one(conn, write(HEADER, row(0)))


def test_bars_of_a_writer_at_the_same_time_are_counted(
    conn: Connection, database: str, write: Write
) -> None:
    """The upsert handles bars that another session commits after the import has read the table."""
    path = write(HEADER, *map(row, range(100)))
    with psycopg.connect(database) as other:
        other.execute("INSERT INTO ohlcv_1m VALUES ('A', %s, 10, 12, 9, 11, 5.5)", (minute(7),))
        other.execute("INSERT INTO ohlcv_1m VALUES ('A', %s, 1, 1, 1, 1, 1)", (minute(8),))
        # The import sees neither bar, and waits for this transaction at the first one.
        with an_import_waits(conn, database, path) as reports:
            other.commit()
    assert counts(reports[0]) == (98, 1, 1, 0, 0)
    assert len(stored(conn)) == 100
    assert stored(conn)[8][2:] == BAR


@contextmanager
def an_import_waits(conn: Connection, database: str, path: Path) -> Iterator[list[FileReport]]:
    """Run the body while an import waits for a lock; yield the list that gets its report."""
    waiting = threading.Event()
    reports: list[FileReport] = []

    def note(progress: Progress) -> None:
        if progress.phase == "storing":
            waiting.set()

    thread = threading.Thread(target=lambda: reports.append(import_one(conn, path, progress=note)))
    thread.start()
    assert waiting.wait(60)
    wait_for_a_waiter(database)
    yield reports
    thread.join(60)


def wait_for_a_waiter(database: str) -> None:
    """Wait until a session of the database waits for a lock."""
    query = """SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'"""
    with psycopg.connect(database, autocommit=True) as conn:
        while conn.execute(query).fetchone() == (0,):
            pass


def test_a_deadlock_is_retried(conn: Connection, database: str, write: Write) -> None:
    path = write(HEADER, *map(row, range(10)))
    insert = "INSERT INTO ohlcv_1m VALUES ('A', %s, 10, 12, 9, 11, 5.5)"
    # The import detects the deadlock, a second after it began to wait.
    with psycopg.connect(database, options="-c deadlock_timeout=1min") as other:
        other.execute(insert, (minute(9),))
        with an_import_waits(conn, database, path) as reports:
            other.execute(insert, (minute(0),))  # the import has locked it, and waits for the other
            other.commit()
    assert counts(reports[0]) == (8, 0, 2, 0, 0)


@pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)
def test_bars_in_the_columnstore_are_corrected(conn: Connection, write: Write) -> None:
    import_one(conn, write(HEADER, *map(row, range(100))))
    conn.execute("SELECT compress_chunk(chunk) FROM show_chunks('ohlcv_1m') AS chunk")
    lines = [
        row(number, "10,12,9,11,7" if number == 50 else "10,12,9,11,5.5") for number in range(110)
    ]
    path = write(HEADER, *lines)
    assert counts(import_one(conn, path)) == (10, 1, 99, 0, 0)
    assert counts(import_one(conn, path)) == (0, 0, 110, 0, 0)
    assert [values[-1] for values in stored(conn)] == [7.0 if n == 50 else 5.5 for n in range(110)]


def test_plans_read_only_the_range_of_the_file(conn: Connection, write: Write) -> None:
    """A second import of a day reads only that day."""
    conn.execute(
        """INSERT INTO ohlcv_1m SELECT symbol, ts, 10, 12, 9, 11, 5.5, 'stream'
             FROM unnest(ARRAY['A', 'B']) symbol,
                  generate_series(timestamptz '2026-01-01 00:00+00', '2026-02-10 00:00+00',
                                  '1 minute') ts"""
    )
    conn.execute("ANALYZE ohlcv_1m")
    conn.execute("SELECT pg_stat_reset_single_table_counters('ohlcv_1m'::regclass)")
    assert counts(import_one(conn, write(HEADER, *map(row, range(1440))))) == (0, 0, 1440, 0, 0)
    conn.execute("SELECT pg_stat_force_next_flush()")
    read = conn.execute(
        """SELECT sum(pg_stat_get_tuples_returned(c.oid)
                      + coalesce(pg_stat_get_tuples_fetched(c.oid), 0))
             FROM pg_class c WHERE c.oid = 'ohlcv_1m'::regclass"""
    ).fetchone()
    assert read is not None
    assert read[0] <= 3 * 1440


# ---- real files ----


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data with real bars does not exist")
@pytest.mark.parametrize(
    ("name", "symbol", "rows", "first", "last"),
    [
        ("ALGOUSDT-1m-2026-02", "ALGO/USDT", 40_320, START, START + timedelta(minutes=40_319)),
        ("LINKUSDT-1m-2026-02", "LINK/USDT", 40_320, START, START + timedelta(minutes=40_319)),
        ("LTCUSDT-1m-2026-02", "LTC/USDT", 40_320, START, START + timedelta(minutes=40_319)),
        (
            "XRPETH-1m-2019-10-11",
            "XRP/ETH",
            2_469,
            datetime(2019, 10, 11, tzinfo=UTC),
            datetime(2019, 10, 13, 11, 19, tzinfo=UTC),
        ),
    ],
)
def test_real_files_are_stored_exactly(
    conn: Connection, name: str, symbol: str, rows: int, first: datetime, last: datetime
) -> None:
    path = DATA / f"{name}.csv.gz"
    report = import_one(conn, path, symbol=symbol)
    assert counts(report) == (rows, 0, 0, 0, 0)
    assert report.spans == {symbol: (first, last)}
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        expected = [
            (symbol, datetime.fromtimestamp(int(cells[0]) / 1000, UTC), *map(float, cells[1:6]))
            for cells in list(csv.reader(file))[1:]
        ]
    assert stored(conn) == expected
    before = versions(conn)
    assert counts(import_one(conn, path, symbol=symbol)) == (0, 0, rows, 0, 0)
    assert versions(conn) == before


# ---- any possible bar ----

BOUNDED = st.floats(1e-100, 1e100)


@st.composite
def bars(draw: st.DrawFn) -> tuple[str, int, float, float, float, float, float]:
    low, first, last, high = sorted(draw(st.lists(BOUNDED, min_size=4, max_size=4)))
    opens, closes = draw(st.permutations([first, last]))
    symbol = draw(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200)
        .map(str.strip)
        .filter(bool)
    )
    ts = draw(st.integers(315_532_800_000_000, 1_769_000_000_000_000))
    return symbol, ts, opens, high, low, closes, draw(st.just(0.0) | BOUNDED)


def bits(number: float) -> bytes:
    return struct.pack(">d", number)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(bars(), max_size=40, unique_by=lambda row: row[:2]))
def test_any_bars_are_stored_exact_to_the_last_bit(
    conn: Connection, tmp_path: Path, rows: list[tuple[Any, ...]]
) -> None:
    path = tmp_path / "bars.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["symbol", "ts", "open", "high", "low", "close", "vol"])
        writer.writerows(rows)
    conn.execute("DELETE FROM ohlcv_1m")
    ticks = TimeRule(ticks=True)
    assert counts(import_one(conn, path, symbol=None, rule=ticks)) == (len(rows), 0, 0, 0, 0)
    query = """SELECT symbol, (extract(epoch FROM ts) * 1000000)::bigint,
                      open, high, low, close, vol
                 FROM ohlcv_1m"""
    found = conn.execute(query).fetchall()
    assert {(s, t, *map(bits, values)) for s, t, *values in found} == {
        (s, t, *map(bits, values)) for s, t, *values in rows
    }
    before = versions(conn)
    assert counts(import_one(conn, path, symbol=None, rule=ticks)) == (0, 0, len(rows), 0, 0)
    assert versions(conn) == before


def test_the_reader_and_the_table_reject_the_same_bars(conn: Connection, write: Write) -> None:
    """The table stores each row that the reader accepts, and rejects each other row."""
    edges = ["0", "9e-101", "1e-100", "1", "2", "1e100", "1.1e100", "-1", "nan", "inf", "-inf"]
    grid = [
        (o, h, low, c, v)
        for o in edges
        for h in edges
        for low in edges
        for c, v in (("1", "0"), (o, "1"), (low, "1e-100"), (h, "1e100"), ("1", o))
    ]
    path = write(HEADER, *(row(at, ",".join(cells)) for at, cells in enumerate(grid)))
    skipped = path.with_name("skipped.csv")
    report = import_one(conn, path, skip_bad=skipped)
    assert report.inserted > 50
    with skipped.open(encoding="utf-8", newline="") as file:
        rejected = [int(one["line"]) - 2 for one in csv.DictReader(file)]
    assert len(rejected) == report.bad
    values = sql.SQL("INSERT INTO ohlcv_1m VALUES ('B', %s, %s, %s, %s, %s, %s)")
    for at in rejected:
        cells = [float(cell) for cell in grid[at]]
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute(values, (minute(at), *cells))
