"""Guards against frames that differ where a part of them comes from the lake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_platform import read_bars, read_features
from feature_platform.errors import UserError
from feature_platform.lake.pieces import Piece, pieces_of
from feature_platform.lake.read import read
from feature_platform.settings import get_settings
from feature_platform_tests.fix_lake import DAY, FIRST, SYMBOLS, Lake

END = FIRST + 10 * DAY
MINUTE = timedelta(minutes=1)


def test_the_newest_days_come_from_the_database(lake: Lake) -> None:
    lake.sync(until=FIRST + 3 * DAY)
    for symbols in ("B", list(SYMBOLS)):
        for columns in (None, ["vol"]):
            stored = read_features(symbols, FIRST, END, columns, source="database")
            both = read_features(symbols, FIRST, END, columns)
            pd.testing.assert_frame_equal(both, stored, check_exact=True)
            complete = read_features(symbols, FIRST, END, columns, source="lake")
            assert len(complete) == len(stored) * 3 // 4
        bars = read_bars(symbols, FIRST, END, as_="arrow", source="database")
        assert read_bars(symbols, FIRST, END, as_="arrow").equals(bars)
        pair = ["features_1m", "mean_1m"]
        joined = read_features(symbols, FIRST, END, view=pair, source="database")
        pd.testing.assert_frame_equal(read_features(symbols, FIRST, END, view=pair), joined)


def test_the_lake_is_read_where_it_is_complete(lake: Lake) -> None:
    """A row that only the lake has shows that it is read."""
    lake.sync()
    lake.conn.execute("DELETE FROM features_1m WHERE symbol = 'A' AND bucket = %s", [FIRST])
    assert len(read_features("A", FIRST, END)) == 4 * 1440
    assert len(read_features("A", FIRST, END, source="database")) == 4 * 1440 - 1


def test_days_that_wait_for_a_sync_come_from_the_database(lake: Lake) -> None:
    lake.sync()
    lake.conn.execute(
        "UPDATE ohlcv_1m SET close = 9.5 WHERE symbol = 'B' AND ts = %s", [FIRST + 1.5 * DAY]
    )
    for symbols in ("B", list(SYMBOLS)):
        bars = read_bars(symbols, FIRST, END, as_="arrow", source="database")
        assert read_bars(symbols, FIRST, END, as_="arrow").equals(bars)
        assert not read_bars(symbols, FIRST, END, as_="arrow", source="lake").equals(bars)
    lake.refresh()
    for view in ("features_1m", "mean_1m"):
        for symbols in ("B", list(SYMBOLS)):
            rows = read_features(symbols, FIRST, END, view=view, as_="arrow", source="database")
            assert read_features(symbols, FIRST, END, view=view, as_="arrow").equals(rows)
            lake_rows = read_features(symbols, FIRST, END, view=view, as_="arrow", source="lake")
            assert not lake_rows.equals(rows)


def test_a_change_of_another_program_is_never_read(lake: Lake) -> None:
    lake.sync()
    rows = read_features("A", FIRST, END, as_="arrow", source="lake")
    lake.delta("features_1m").delete("symbol = 'A' AND n_1d < 100")
    assert read_features("A", FIRST, END, as_="arrow").equals(rows)
    assert read_features("A", FIRST, END, as_="arrow", source="lake").equals(rows)
    with pytest.raises(UserError, match="is restored"):
        lake.sync()
    assert read_features("A", FIRST, END, as_="arrow", source="lake").equals(rows)


def test_a_lake_that_the_database_does_not_know_has_no_change_of_another_program(
    lake: Lake,
) -> None:
    lake.sync()
    lake.conn.execute("DELETE FROM feature_platform.lake_table")
    rows = read_features("A", FIRST, END, as_="arrow", source="lake")
    assert rows.num_rows == 4 * 1440
    lake.delta("features_1m").delete("symbol = 'A' AND n_1d < 100")
    with pytest.raises(UserError, match=r"another program changed it .*DELETE.*: run"):
        read_features("A", FIRST, END, as_="arrow", source="lake")


def test_a_day_that_waits_for_two_changes_is_read_once(lake: Lake) -> None:
    lake.sync()
    for minute in (10, 700):
        lake.correct("A", FIRST + 2 * DAY + minute * MINUTE, close=9.25)
    lake.conn.execute(
        "UPDATE ohlcv_1m SET close = 9.75 WHERE symbol = 'A' AND ts = %s", [FIRST + 2 * DAY]
    )
    for view in ("features_1m", "mean_1m"):
        rows = read_features("A", FIRST, END, view=view, as_="arrow", source="database")
        assert read_features("A", FIRST, END, view=view, as_="arrow").equals(rows)
    bars = read_bars("A", FIRST, END, as_="arrow", source="database")
    assert read_bars("A", FIRST, END, as_="arrow").equals(bars)


def test_the_lake_of_another_database_is_never_read(lake: Lake) -> None:
    lake.sync()
    lake.conn.execute("UPDATE feature_platform.lake_table SET table_id = gen_random_uuid()")
    with pytest.raises(UserError, match="is the lake of another database"):
        read_features("A", FIRST, END)


def test_a_lake_of_another_place_is_not_read(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.sync()
    monkeypatch.setenv("FEATURE_PLATFORM_LAKE", f"{lake.path}-other")
    get_settings.cache_clear()
    assert len(read_features("A", FIRST, END)) == 4 * 1440
    with pytest.raises(UserError, match="does not exist: run `feature-platform lake sync`"):
        read_features("A", FIRST, END, source="lake")


def test_a_source_that_cannot_answer_is_an_error(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.sync()
    with pytest.raises(UserError, match="does not know rows as of a time"):
        read_features("A", FIRST, END, as_of=END, source="lake")
    with pytest.raises(UserError, match="source is 'lake' or 'database', not 'x'"):
        read_features("A", FIRST, END, source="x")  # type: ignore[call-overload]
    monkeypatch.delenv("FEATURE_PLATFORM_LAKE")
    get_settings.cache_clear()
    with pytest.raises(UserError, match="no lake is configured"):
        read_features("A", FIRST, END, source="lake")


def test_a_new_version_of_a_view_is_read_from_the_database_until_a_sync(lake: Lake) -> None:
    from feature_platform.views import catalog
    from feature_platform.views.expressions import bar, mean
    from feature_platform.views.view import FeatureView

    lake.sync()
    catalog.apply(
        lake.conn, [FeatureView("mean_1m", "1 minute", {"mean_2h": mean(bar.close, "2 hours")})]
    )
    catalog.refresh_views(lake.conn)
    before = read_features("A", FIRST, END, view="mean_1m", as_="arrow")
    assert before.column_names == ["bucket", "mean_2h"]
    with pytest.raises(UserError, match="has rows of another version of mean_1m: run"):
        read_features("A", FIRST, END, view="mean_1m", source="lake")
    lake.sync()
    assert isinstance(before, pa.Table)
    assert read_features("A", FIRST, END, view="mean_1m", as_="arrow", source="lake").equals(before)
    lake.assert_equal()


def test_a_read_needs_only_the_files_and_row_groups_that_have_its_rows(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other files may be lost, and rows of other symbols and hours are not decoded."""
    monkeypatch.setattr("feature_platform.lake.tables._PARTS", 1)
    lake.sync()
    for file in lake.path.rglob("features_1m/lake_month=2026-01/**/*.parquet"):
        file.unlink()
    start = datetime(2026, 2, 1, tzinfo=UTC)
    table = lake.delta("features_1m")
    (file,) = lake.path.rglob("features_1m/lake_month=2026-02/**/*.parquet")
    rows = pq.read_table(file, partitioning=None)
    assert rows.num_rows == 3 * 2 * 1440
    pq.write_table(rows, file, row_group_size=720)
    decoded: list[int] = []

    def counting(rows: pa.Table, time: str, columns: Sequence[str]) -> Iterator[Piece]:
        decoded.append(rows.num_rows)
        return pieces_of(rows, time, columns)

    monkeypatch.setattr("feature_platform.lake.read.pieces_of", counting)
    for symbols in (["B"], ["A", "it's"]):
        decoded.clear()
        found = read(
            table, f"{lake.path}/features_1m", "bucket", symbols, start, start + DAY, ["vol"]
        )
        assert found.num_rows == 1440 * len(symbols)
        assert decoded == [1440 * len(symbols)]
