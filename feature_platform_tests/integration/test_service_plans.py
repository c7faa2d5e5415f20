"""Guards against statements of the service whose cost grows with the history."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.queries import queries
from feature_platform_tests.fix_plans import about_as_many, nodes, pages_of

GAPS = """
    INSERT INTO ohlcv_1m_gaps (symbol, start_ts, end_ts, state)
    SELECT symbol, ts + interval '1 minute', ts + interval '3 minutes', 'quiet' FROM ohlcv_1m
"""
WATERMARKS = """
    INSERT INTO feature_platform.gap_watermark
    SELECT symbol, now() - interval '1 year', now() FROM feature_platform.bar_symbol
"""
Histories = tuple[psycopg.Connection, ...]


def explain(conn: psycopg.Connection, query: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run a query as the service does: prepared, with a plan for any parameters."""
    statement = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + queries[query]
    for _ in range(2):  # the first call of a session reads the catalogues, too
        row = conn.execute(statement, parameters, prepare=True).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]
    return plan


@pytest.fixture
def any_plan(histories: Histories) -> Iterator[Histories]:
    """Yield the histories with generic plans, as the server uses for frequent statements."""
    for conn in histories:
        conn.execute("SET plan_cache_mode = force_generic_plan")
    yield histories
    for conn in histories:
        conn.execute("RESET plan_cache_mode")


def scans(plan: dict[str, Any], table: str) -> list[dict[str, Any]]:
    found = [node for node in nodes(plan["Plan"]) if node.get("Relation Name") == table]
    assert found
    return found


def reads_a_table(node: dict[str, Any]) -> bool:
    """Return whether a node reads a table itself; TimescaleDB's append passes rows of chunks."""
    return "Relation Name" in node and not any(map(reads_a_table, node.get("Plans", ())))


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


@pytest.mark.parametrize(
    ("query", "rows"), [("service_rows", 1000), ("service_next_start", 60), ("service_rows", 1)]
)
def test_a_part_of_a_page_reads_only_its_rows(any_plan: Histories, query: str, rows: int) -> None:
    now = datetime.now(UTC)
    window = {"symbol": "S3", "start": now - timedelta(days=2), "end": now, "rows": rows}
    pages = []
    for conn in any_plan:
        plan = explain(conn, query, window)
        pages.append(pages_of(plan))
        read = [node for node in nodes(plan["Plan"]) if reads_a_table(node)]
        assert "Seq Scan" not in {node["Node Type"] for node in read}
        assert sum(node["Actual Rows"] * node["Actual Loops"] for node in read) <= rows + 1
    assert about_as_many(pages)


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
