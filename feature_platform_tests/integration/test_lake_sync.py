"""Guards against a lake that differs from the tables, and against half a commit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from feature_platform import training_set
from feature_platform.errors import UserError
from feature_platform.lake.tables import MirroredTable, mirrored_tables
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


def test_a_table_that_lacks_a_column_is_written_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version of the platform wrote no numbers of refreshes."""

    def earlier(*arguments: Any) -> list[MirroredTable]:
        return [
            replace(table, columns=[name for name in table.columns if name != "refresh_no"])
            for table in mirrored_tables(*arguments)
        ]

    with monkeypatch.context() as before:
        before.setattr("feature_platform.lake.sync.mirrored_tables", earlier)
        lake.sync()
    assert "refresh_no" not in lake.rows("features_1m").column_names
    monkeypatch.setattr(
        "feature_platform.lake.engines.on_ray", lambda work, tasks: map(work, tasks)
    )
    events = pd.DataFrame({"symbol": "A", "time": [pd.Timestamp(FIRST + DAY)]})
    with pytest.raises(UserError, match=r"an earlier version .* run `feature-platform lake sync`"):
        training_set(events, ["features_1m.vol"], {}, engine="ray")
    done = lake.sync()
    assert {name: one.rows for name, one in done.items()} == {
        "ohlcv_1m": 0,
        "features_1m": 3 * 4 * 1440,
        "mean_1m": 3 * 4 * 1440,
    }
    assert "refresh_no" in lake.rows("features_1m").column_names
    lake.assert_equal()
