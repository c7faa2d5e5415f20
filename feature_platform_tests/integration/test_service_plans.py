"""Guards against statements of the service whose cost grows with the history."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from feature_platform.queries import queries
from feature_platform.views import FeatureView, bar, catalog
from feature_platform_tests.fix_plans import about_as_many, nodes, pages_of
from feature_platform_tests.fix_processes import value

GAPS = """
    INSERT INTO ohlcv_1m_gaps (symbol, start_ts, end_ts, state)
    SELECT symbol, ts + interval '1 minute', ts + interval '3 minutes', 'quiet' FROM ohlcv_1m
"""
WATERMARKS = """
    INSERT INTO feature_platform.gap_watermark
    SELECT symbol, now() - interval '1 year', now() FROM feature_platform.bar_symbol
"""
CORRECT = """
    UPDATE ohlcv_1m SET vol = vol + 1
    WHERE ts = (SELECT max(ts) - interval '1 day' FROM ohlcv_1m WHERE symbol = 'S3');
    SELECT feature_platform.refresh_slice(
        '-infinity', feature_platform.due_until(), feature_platform.dirty_horizon())
"""
MARKS = """
    INSERT INTO feature_platform.dirty_log (symbol, buckets, changed)
    SELECT 'S3', '{[2026-01-01,)}', '{[2026-01-01,)}' FROM generate_series(1, %s)
"""
ALL = 10**15  # a number that is above those of all refreshes
Histories = tuple[psycopg.Connection, ...]


def explain(
    conn: psycopg.Connection, query: str, parameters: dict[str, Any], **identifiers: sql.Composable
) -> dict[str, Any]:
    """Run a query as the service does: prepared, with a plan for any parameters."""
    text = sql.SQL(queries[query])
    statement = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ") + (
        text.format(**identifiers) if identifiers else text
    )
    for _ in range(2):  # the first call of a session reads the catalogues, too
        row = conn.execute(statement, parameters, prepare=True).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]
    return plan


@pytest.fixture
def any_plan(histories: Histories) -> Iterator[Histories]:
    """Yield the histories with generic plans, as the server uses for frequent statements.

    The session is the service's, except that it may write.
    """
    for conn in histories:
        conn.execute(queries["service_session"], {"statement_timeout": "1min"})
        conn.execute("SET default_transaction_read_only = off")
        conn.execute("SET plan_cache_mode = force_generic_plan")
    yield histories
    for conn in histories:
        conn.execute("RESET ALL")


def scans(plan: dict[str, Any], table: str) -> list[dict[str, Any]]:
    found = [node for node in nodes(plan["Plan"]) if node.get("Relation Name") == table]
    assert found
    return found


def reads_a_table(node: dict[str, Any]) -> bool:
    """Return whether a node reads a table itself; TimescaleDB's append passes rows of chunks."""
    return "Relation Name" in node and not any(
        "Relation Name" in part for child in node.get("Plans", ()) for part in nodes(child)
    )


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize("symbols", [["S3"], [f"S{i}" for i in range(1, 21)], ["no", "S1", "nil"]])
def test_the_newest_row_is_one_step_of_the_primary_key(
    any_plan: Histories, symbols: list[str]
) -> None:
    pages = []
    for conn in any_plan:
        plan = explain(conn, "service_latest", {"symbols": symbols})
        (scan,) = scans(plan, "features_1m")
        assert scan["Index Name"] == "features_1m_pkey"
        assert scan["Actual Loops"] == len(symbols)
        assert scan["Actual Rows"] <= 1
        assert scan.get("Rows Removed by Filter", 0) == 0
        pages.append(pages_of(plan))
    assert pages[1] <= pages[0] + 2 * len(symbols)


def window_of(rows: int, upto: int = ALL) -> dict[str, Any]:
    """Return the parameters of two days, as of a number; by default all refreshes count."""
    now = datetime.now(UTC)
    window = {"symbol": "S3", "start": now - timedelta(days=2), "end": now, "rows": rows}
    asked = {"as_of": None, "symbol_no": None if upto == ALL else upto}
    return {**window, **asked, "upto": upto, "late": []}


def assert_reads(plan: dict[str, Any], rows: int) -> None:
    """Check that the scans of tables of rows return at most so many rows, by an index."""
    read = [
        node
        for node in nodes(plan["Plan"])
        if reads_a_table(node)
        and node["Actual Loops"] > 0
        and node["Relation Name"].startswith(("features_1m", "_hyper"))  # chunks of TimescaleDB
    ]
    # TimescaleDB has a node of its own for chunks that it excluded.
    by_index = {"Index Scan", "Index Only Scan", "Custom Scan"}
    assert {node["Node Type"] for node in read} <= by_index
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in read) <= rows


@pytest.mark.parametrize(
    ("query", "rows"), [("service_rows", 1000), ("service_page", 60), ("service_rows", 1)]
)
def test_a_part_of_a_page_reads_only_its_rows(any_plan: Histories, query: str, rows: int) -> None:
    pages = []
    for conn in any_plan:
        plan = explain(conn, query, window_of(rows))
        pages.append(pages_of(plan))
        assert_reads(plan, rows + 1)
        # Without a newer refresh no old version is read.
        for scan in scans(plan, "features_1m_history"):
            assert scan["Actual Loops"] == 0
    assert about_as_many(pages)


@pytest.mark.parametrize("query", ["service_rows", "service_page"])
def test_rows_as_of_a_number_read_only_their_range(any_plan: Histories, query: str) -> None:
    pages = []
    for conn in any_plan:
        before = value(conn, "SELECT feature_platform.number_of('S3')")
        with conn.transaction(force_rollback=True):
            conn.execute(CORRECT)
            assert value(conn, "SELECT feature_platform.number_of('S3')") > before
            conn.execute("ANALYZE feature_platform.features_1m_history")
            plan = explain(conn, query, window_of(300, before))
            (scan,) = scans(plan, "features_1m_history")
            assert scan["Actual Rows"] > 100
            pages.append(pages_of(plan))
            assert_reads(plan, 2 * 288 + 2)
    assert about_as_many(pages)


@pytest.fixture(scope="module")
def views(histories: Histories) -> Histories:
    """Return the histories with a feature view."""
    for conn in histories:
        catalog.apply(conn, [FeatureView("momentum_1m", "1 minute", {"x": bar.vol})])
        catalog.refresh_views(conn)
        conn.execute("VACUUM (ANALYZE)")
    return histories


@pytest.mark.usefixtures("views")
@pytest.mark.parametrize(
    ("query", "rows"),
    [("service_view_rows", 100), ("service_view_page", 60), ("service_view_latest", 1)],
)
def test_a_view_is_read_by_its_rows(any_plan: Histories, query: str, rows: int) -> None:
    pages = []
    for conn in any_plan:
        (number,) = conn.execute("SELECT id FROM feature_platform.feature_view").fetchone() or ()
        parameters = {**window_of(rows), "id": number}
        if query == "service_view_latest":
            parameters |= {"symbols": ["S3"], "width": timedelta(minutes=1)}
        plan = explain(
            conn,
            query,
            parameters,
            view=sql.Identifier("momentum_1m"),
            versions=sql.Identifier("feature_views", f"v{number}_versions"),
            columns=sql.SQL("f.x"),
        )
        pages.append(pages_of(plan))
        read = [node for node in nodes(plan["Plan"]) if reads_a_table(node)]
        found = [one for one in read if one["Relation Name"] == f"v{number}_rows"]
        assert sum(node["Actual Rows"] * node["Actual Loops"] for node in found) <= rows + 1
        assert not any(
            one["Actual Loops"] for one in read if one["Relation Name"] == f"v{number}_history"
        )
    assert about_as_many(pages)


def test_marks_that_were_not_put_back_cost_the_newest_row_nothing(any_plan: Histories) -> None:
    conn = any_plan[0]
    pages = []
    for marks in (0, 5000):
        with conn.transaction(force_rollback=True):
            conn.execute(MARKS, [marks])
            conn.execute("ANALYZE feature_platform.dirty_log")
            pages.append(pages_of(explain(conn, "service_latest", {"symbols": ["S3"]})))
    assert pages[1] <= pages[0] + 2


@pytest.mark.parametrize("query", ["service_symbols", "service_symbol_is_known"])
def test_the_cost_of_the_list_of_symbols_does_not_grow(any_plan: Histories, query: str) -> None:
    short, long = (pages_of(explain(conn, query, {"symbol": "none"})) for conn in any_plan)
    assert about_as_many([short, long])


@pytest.mark.parametrize("query", ["service_dirty", "service_policy", "service_policy_runs"])
def test_the_cost_of_metrics_does_not_grow_with_the_history(
    any_plan: Histories, query: str
) -> None:
    pages = [pages_of(explain(conn, query, {})) for conn in any_plan]
    assert about_as_many(pages)


def test_the_metric_of_gaps_reads_one_day(any_plan: Histories) -> None:
    pages = []
    for conn in any_plan:
        with conn.transaction(force_rollback=True):
            conn.execute(GAPS)
            conn.execute(WATERMARKS)
            conn.execute("ANALYZE ohlcv_1m_gaps, feature_platform.gap_watermark")
            pages.append(pages_of(explain(conn, "service_gaps", {})))
    assert about_as_many(pages)


def test_the_metric_of_runs_reads_a_thousand_runs(any_plan: Histories) -> None:
    pages = []
    for conn, runs in zip(any_plan, (2000, 20_000), strict=True):
        with conn.transaction(force_rollback=True):
            conn.execute(
                "INSERT INTO feature_platform.policy_run (runner)"
                " SELECT 'worker' FROM generate_series(1, %s)",
                [runs],
            )
            conn.execute("ANALYZE feature_platform.policy_run")
            pages.append(pages_of(explain(conn, "service_policy_runs", {})))
    assert about_as_many(pages)
