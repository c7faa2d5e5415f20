"""Guards against a lake that differs from the tables, and against half a commit."""

from __future__ import annotations

from feature_platform_tests.fix_lake import DAY, FIRST, Lake


def test_a_first_sync_copies_all_rows(lake: Lake) -> None:
    done = lake.sync()
    lake.assert_equal()
    assert {name: one.rows for name, one in done.items()} == dict.fromkeys(done, 3 * 4 * 1440)


def test_a_second_sync_writes_nothing(lake: Lake) -> None:
    lake.sync()
    assert all(one.rows == 0 and one.commits == 0 for one in lake.sync().values())


def test_a_sync_adds_the_new_days_alone(lake: Lake) -> None:
    lake.sync(until=FIRST + DAY)
    lake.assert_equal(FIRST + DAY)
    before = set(lake.delta("features_1m").file_uris())
    lake.sync(until=FIRST + 3 * DAY)
    lake.assert_equal(FIRST + 3 * DAY)
    assert before < set(lake.delta("features_1m").file_uris())


def test_a_correction_rewrites_the_partitions_that_it_reaches_and_no_others(lake: Lake) -> None:
    lake.sync()
    before = {name: set(lake.delta(name).file_uris()) for name in ("ohlcv_1m", "features_1m")}
    lake.correct("B", FIRST + 2.5 * DAY)
    done = lake.sync()
    lake.assert_equal()
    assert done["ohlcv_1m"].rows == 1440
    assert done["features_1m"].rows == 2 * 1440
    for name, files in before.items():
        gone = files - set(lake.delta(name).file_uris())
        assert len(gone) == 1
        assert all("lake_month=2026-02" in file for file in gone)


def test_a_deleted_symbol_and_a_name_with_a_quote_are_replaced(lake: Lake) -> None:
    lake.sync()
    lake.conn.execute("SELECT feature_platform.forget_symbol('A')")
    lake.correct("it's", FIRST + 0.5 * DAY)
    lake.sync()
    lake.assert_equal()
    assert set(lake.rows("ohlcv_1m")["symbol"].to_pylist()) == {"B", "it's"}


def test_truncate_empties_the_lake(lake: Lake) -> None:
    lake.sync()
    lake.conn.execute("TRUNCATE ohlcv_1m")
    lake.refresh()
    lake.sync()
    lake.assert_equal()
    assert lake.rows("features_1m").num_rows == 0
