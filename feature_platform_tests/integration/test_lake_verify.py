"""Guards against a difference between lake and database that verify does not find or mend."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from feature_platform._adbc import Reader
from feature_platform.errors import UserError
from feature_platform.lake import verify as verify_module
from feature_platform.lake.checksum import sums_of
from feature_platform.lake.compact import compact
from feature_platform.lake.status import lake_status
from feature_platform.lake.sync import rows_of
from feature_platform.lake.tables import MirroredTable
from feature_platform.lake.verify import has_turn, verify
from feature_platform_tests.fix_lake import DAY, FIRST, MEAN, SYMBOLS, TIMES, Lake


def test_verify_compares_every_day_of_every_symbol(lake: Lake) -> None:
    lake.sync()
    for report in verify(lake.conn):
        assert report.equal
        assert (report.rows, report.days, report.pending) == (3 * 4 * 1440, 3 * 4, 0)
        assert report.sampled == 1440


def test_a_change_that_waits_for_a_sync_is_no_difference(lake: Lake) -> None:
    lake.sync()
    lake.conn.execute(
        "UPDATE ohlcv_1m SET close = 9.5 WHERE symbol = 'B' AND ts = %s", [FIRST + 1.5 * DAY]
    )
    unprocessed = {report.name: report for report in verify(lake.conn)}
    assert unprocessed["ohlcv_1m"].pending == 1
    lake.refresh()
    refreshed = {report.name: report for report in verify(lake.conn)}
    assert refreshed["features_1m"].pending == 2
    assert all(report.equal for report in [*unprocessed.values(), *refreshed.values()])


def test_a_value_that_changed_without_a_record_is_found_and_mended(lake: Lake) -> None:
    lake.sync()
    lake.conn.execute("ALTER TABLE features_1m DISABLE TRIGGER USER")
    lake.conn.execute(
        """UPDATE features_1m SET vol = vol + 1e-9 WHERE symbol = 'A' AND bucket = %s""",
        [FIRST + DAY],
    )
    (report,) = verify(lake.conn, ["features_1m"])
    (found,) = report.differences
    assert (found.symbol, found.day, found.rows_in_lake) == ("A", FIRST + DAY, 1440)
    lake.sync()
    lake.assert_equal()


def test_a_nightly_verify_compares_young_files_and_those_whose_turn_it_is(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.sync(until=FIRST + 3 * DAY)
    for log in lake.path.rglob("_delta_log/*.json"):
        log.write_text(re.sub(r'("modificationTime":)(\d+)', older, log.read_text()))
    lake.sync()
    lake.conn.execute("ALTER TABLE features_1m DISABLE TRIGGER USER")
    lake.conn.execute(
        "UPDATE features_1m SET vol = vol + 1 WHERE symbol = 'A' AND bucket = ANY (%s)",
        [[FIRST + DAY, FIRST + 3 * DAY]],
    )

    def found() -> tuple[int, list[datetime]]:
        (report,) = verify(lake.conn, ["features_1m"], nightly=True)
        return report.days, [one.day for one in report.differences]

    with monkeypatch.context() as never:
        never.setattr("feature_platform.lake.verify._NIGHTS", 1 << 62)
        assert found() == (3, [FIRST + 3 * DAY])
    monkeypatch.setattr("feature_platform.lake.verify._NIGHTS", 1)
    days, different = found()
    assert days == 3 * 4
    # The first difference waits for a sync now.
    assert different == [FIRST + DAY]
    lake.sync()
    lake.assert_equal()


def older(found: re.Match[str]) -> str:
    """Return a time of the log, three days earlier."""
    return f"{found[1]}{int(found[2]) - 3 * 86_400_000}"


def test_each_partition_has_its_turn_in_thirty_nights() -> None:
    for month in ("2024-12", "2025-01"):
        for part in range(64):
            nights = [night for night in range(739_000, 739_030) if has_turn(month, part, night)]
            assert len(nights) == 1
    turns = [sum(has_turn("2025-01", part, night) for part in range(64)) for night in range(30)]
    assert max(turns) <= 8


def test_a_lost_file_is_found_and_mended(lake: Lake) -> None:
    lake.sync()
    file = next(iter(lake.delta("ohlcv_1m").file_uris()))
    Path(file).unlink()
    (report,) = verify(lake.conn, ["ohlcv_1m"])
    assert report.lost_files == 1
    assert report.differences
    lake.sync()
    lake.assert_equal()


@pytest.mark.parametrize("command", ["sync", "verify"])
@pytest.mark.parametrize("damage", ["edited", "cut", "lost"])
def test_a_damaged_file_is_written_again(lake: Lake, command: str, damage: str) -> None:
    lake.sync()
    path = Path(lake.delta("features_1m").file_uris()[0])
    match damage:
        case "edited":
            rows = pq.read_table(path)
            pq.write_table(rows.set_column(0, rows.column_names[0], rows[0]), path)
        case "cut":
            path.write_bytes(path.read_bytes()[:-5000])
        case _:
            path.unlink()
    if command == "verify":
        (report,) = verify(lake.conn, ["features_1m"])
        assert report.lost_files == 1
        assert report.differences
    lake.sync()
    lake.assert_equal()
    assert all(report.equal for report in verify(lake.conn))


def test_a_sync_during_a_verify_is_no_difference(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.sync()
    overtaken: list[str] = []

    def late(source: Reader, table: MirroredTable, *days: Any) -> pa.Table:
        if table.name not in overtaken:
            lake.correct("A", FIRST + len(overtaken) * timedelta(hours=1))
            lake.sync()
            overtaken.append(table.name)
        return rows_of(source, table, *days)

    monkeypatch.setattr(verify_module, "rows_of", late)
    assert all(report.equal for report in verify(lake.conn))
    assert len(overtaken) == len(TIMES)


def test_a_client_in_another_time_zone_finds_no_difference(lake: Lake) -> None:
    lake.conn.execute("SET timezone = 'America/New_York'")
    lake.sync()
    for report in verify(lake.conn):
        assert report.equal


def test_a_table_that_another_program_changed_is_restored(lake: Lake) -> None:
    lake.sync()
    table = lake.delta("features_1m")
    table.delete("symbol = 'A'")
    with pytest.raises(UserError, match=r"another program changed it .*DELETE.* is restored"):
        lake.sync()
    lake.sync()
    lake.assert_equal()
    write_deltalake(
        lake.delta("ohlcv_1m"), lake.delta("ohlcv_1m").to_pyarrow_table().slice(0, 1), mode="append"
    )
    with pytest.raises(UserError, match=r"another program changed it .*WRITE"):
        list(verify(lake.conn))
    lake.assert_equal()


def test_the_lake_of_another_database_is_rejected(lake: Lake) -> None:
    lake.sync()
    lake.conn.execute("DELETE FROM feature_platform.lake_table")
    with pytest.raises(UserError, match="lake of another database"):
        lake.sync()
    lake.sync(rebuild=True)
    lake.assert_equal()


def test_a_directory_that_was_deleted_is_written_again(lake: Lake) -> None:
    lake.sync()
    for name in TIMES:
        (lake.path / name).rename(lake.path / f"{name}-away")
    lake.sync()
    lake.assert_equal()


def test_a_table_of_another_kind_and_of_a_newer_version_is_rejected(lake: Lake) -> None:
    write_deltalake(str(lake.path / "features_1m"), pa.table({"a": [1]}))
    with pytest.raises(UserError, match="is not a table of the platform"):
        lake.sync(names=["features_1m"])
    DeltaTable.create(
        str(lake.path / "ohlcv_1m"),
        pa.schema([("a", pa.int32())]),
        description="feature_platform lake, layout 2, mirror x",
    )
    with pytest.raises(UserError, match="a newer version of the platform wrote it"):
        lake.sync(names=["ohlcv_1m"])


def test_compaction_leaves_one_sorted_file_a_partition(lake: Lake) -> None:
    for day in range(1, 5):
        lake.sync(until=FIRST + day * DAY)
    before = {one.name: one.files for one in lake_status(lake.conn)}
    done = {one.name: one for one in compact(lake.conn)}
    lake.assert_equal()
    partitions = len(SYMBOLS) * 2
    assert all(before[name] == 2 * partitions for name in TIMES)
    assert all(one.files == partitions for one in done.values())
    assert all(one.partitions == 0 for one in compact(lake.conn))
    assert MEAN.name in done


def test_a_checksum_sees_each_bit_and_no_order() -> None:
    rows = pa.table(
        {
            "symbol": ["A", "A", "A"],
            "bucket": pa.array([FIRST, FIRST + DAY / 1440, FIRST + DAY], pa.timestamp("us", "UTC")),
            "x": [1.0, None, 0.0],
            "y": [1.0, 2.0, 3.0],
        }
    )
    sums = sums_of(rows, "bucket")
    assert {key: count for key, (count, _) in sums.items()} == {
        ("A", FIRST): 2,
        ("A", FIRST + DAY): 1,
    }
    assert sums_of(rows.take([2, 1, 0]), "bucket") == sums
    for x, y in (([1.0, 0.0, 0.0], [1.0, 2.0, 3.0]), ([2.0, None, 0.0], [1.0, 1.0, 3.0])):
        changed = rows.set_column(2, "x", [x]).set_column(3, "y", [y])
        assert sums_of(changed, "bucket")["A", FIRST] != sums["A", FIRST]
    negative = rows.set_column(2, "x", [[1.0, None, -0.0]])
    assert sums_of(negative, "bucket")["A", FIRST + DAY] != sums["A", FIRST + DAY]
