"""Guards against metrics that are wrong, missing in the documentation, or slow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client.parser import text_string_to_metric_families

from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_embedded import CHECKOUT
from feature_platform_tests.fix_processes import value
from feature_platform_tests.fix_service import STRANGE, ServedDatabase

Samples = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def served(databases: Databases) -> Iterator[ServedDatabase]:
    """Yield a served database of one test, whose metrics are not cached yet."""
    with databases.fresh() as url, ExitStack() as stack:
        yield ServedDatabase(url, stack)


def _values(labels: dict[str, str]) -> tuple[str, ...]:
    """Return the values of labels, in the order of the labels' names."""
    return tuple(value for _, value in sorted(labels.items()))


def samples(served: ServedDatabase) -> Samples:
    answer = served.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name.removeprefix("feature_platform_"), _values(sample.labels)): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_show_the_state_of_the_platform(served: ServedDatabase) -> None:
    first = served.add(STRANGE, 30, minutes_ago=10)
    served.conn.execute(
        "INSERT INTO feature_platform.gap_watermark VALUES (%s, %s, now())", [STRANGE, first]
    )
    # The first gap has two hours in the last day. The last gap has none.
    served.conn.execute(
        """
        INSERT INTO ohlcv_1m_gaps (symbol, start_ts, end_ts, state)
        SELECT %s, now() - start, now() - stop, state
          FROM (VALUES (interval '25 hours', interval '22 hours', 'quiet'),
                       (interval '30 minutes', interval '20 minutes', 'open'),
                       (interval '20 minutes', interval '18 minutes', 'filled'),
                       (interval '60 hours', interval '50 hours', 'unavailable'))
            AS gap (start, stop, state)
        """,
        [STRANGE],
    )
    served.conn.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts = %s", [first])
    served.conn.execute(
        "INSERT INTO feature_platform.policy_run"
        " (runner, started_at, finished_at, rows_written, error)"
        " VALUES ('worker', now() - interval '9 s', now() - interval '8 s', 5, 'no'),"
        " ('worker', now() - interval '7 s', now() - interval '4 s', 77, NULL)"
    )
    found = samples(served)
    assert found["database_up", ()] == 1
    assert 600 <= found["lag_seconds", (STRANGE,)] < 720
    assert found["dirty_rows", ()] == 30
    assert 0 <= found["dirty_age_seconds", ()] < 60
    assert found["missing_minutes", ("quiet",)] == pytest.approx(120, abs=1)
    assert found["missing_minutes", ("open",)] == pytest.approx(10)
    assert found["missing_minutes", ("unavailable",)] == 0
    assert found["policy_present", ()] == 1
    assert found["policy_runs", ("ok",)] == 1
    assert found["policy_runs", ("failed",)] == 1
    assert found["policy_runs", ("unfinished",)] == 0
    assert found["policy_last_rows_written", ()] == 77
    assert found["policy_last_run_seconds", ()] == pytest.approx(3)
    assert found["process_resident_memory_bytes", ()] > 0


def test_metrics_without_data_and_policy_are_no_error(served: ServedDatabase) -> None:
    served.conn.execute("SELECT remove_features_1m_policy()")
    found = samples(served)
    assert found["database_up", ()] == 1
    assert found["policy_present", ()] == 0
    assert ("policy_last_run_seconds", ()) not in found


def test_requests_are_counted_by_route_and_status(served: ServedDatabase) -> None:
    served.add("X", 3)
    for path in (*["/v1/features/latest?symbol=X"] * 3, "/v1/features/latest", "/a", "/b"):
        served.http.get(path)
    found = samples(served)
    count = "http_request_seconds_count"
    assert found[count, ("/v1/features/latest", "200")] == 3
    assert found[count, ("/v1/features/latest", "422")] == 1
    assert found[count, ("none", "404")] == 2
    assert 0 < found["http_request_seconds_sum", ("/v1/features/latest", "200")] < 60


def test_the_metrics_of_the_database_are_cached(served: ServedDatabase) -> None:
    """A cache of seconds bounds the reads, so that many requests cost few statements."""
    calls = "SELECT sum(numbackends + xact_commit) FROM pg_stat_database WHERE datname = %s"
    samples(served)
    name = served.conn.info.dbname
    served.conn.execute("SELECT pg_stat_force_next_flush()")
    before = value(served.conn, calls, name)
    for _ in range(50):
        served.http.get("/metrics")
    served.conn.execute("SELECT pg_stat_force_next_flush()")
    assert value(served.conn, calls, name) - before < 50


def test_metrics_show_the_state_of_the_recorder(served: ServedDatabase) -> None:
    served.conn.execute(
        """
        INSERT INTO feature_platform.heartbeat
            (symbol, state, state_at, first_at, update_at, beat_at, rejected)
        VALUES (%s, 'live', now(), now(), now() - interval '5 s', now() - interval '3 s', 2),
               ('B', 'down', now(), now(), NULL, now() - interval '3 s', 0)
        """,
        [STRANGE],
    )
    found = samples(served)
    states = {key: value for key, value in found.items() if key[0] == "recorder_state"}
    assert states == {
        ("recorder_state", ("live", STRANGE)): 1,
        ("recorder_state", ("down", "B")): 1,
    }
    assert 3 <= found["recorder_silent_seconds", ("B",)] < 60
    assert 5 <= found["recorder_update_age_seconds", (STRANGE,)] < 60
    assert ("recorder_update_age_seconds", ("B",)) not in found
    assert found["recorder_rejected_rows", (STRANGE,)] == 2


def test_every_metric_is_documented(served: ServedDatabase) -> None:
    served.conn.execute("INSERT INTO feature_platform.policy_run (runner) VALUES ('worker')")
    named = {name.removesuffix("_sum").removesuffix("_count") for name, _ in samples(served)}
    ours = {name.removesuffix("_created").removesuffix("_bucket") for name in named}
    text = (CHECKOUT / "docs" / "reference.md").read_text(encoding="utf-8")
    table = text.partition("| metric, ")[2].partition("\n\n")[0]
    documented = set(re.findall(r"`([a-z_]+)`", table.replace("(`", "(")))
    assert {name for name in ours if not name.startswith("process_")} <= documented
