"""Guards against health checks of containers that pass while their service does not work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from feature_platform.health import problem_of
from feature_platform.settings import get_settings
from feature_platform_tests.fix_processes import only_line, rejection, run, run_on


@pytest.fixture(autouse=True)
def configured(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the settings name the test's database."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    get_settings.cache_clear()


def test_a_worker_is_healthy_while_its_runs_begin_in_time(conn: psycopg.Connection[Any]) -> None:
    conn.execute("UPDATE feature_platform.policy SET changed_at = now() - interval '1 hour'")
    assert problem_of("worker") == "no worker is running: none has run here within 7 days"
    conn.execute(
        "INSERT INTO feature_platform.policy_run (runner, started_at)"
        " VALUES ('job', now()), ('worker', now() - interval '10 minutes')"
    )
    problem = problem_of("worker")
    assert problem is not None
    assert problem.startswith("no worker is running: the last run of the policy began 60")
    conn.execute("INSERT INTO feature_platform.policy_run (runner) VALUES ('worker')")
    assert problem_of("worker") is None


def test_a_new_worker_or_a_missing_policy_counts_as_healthy(
    conn: psycopg.Connection[Any],
) -> None:
    conn.execute("SELECT alter_features_1m_policy(schedule_interval => '1 minute')")
    assert problem_of("worker") is None
    conn.execute("SELECT remove_features_1m_policy()")
    assert problem_of("worker") is None


def test_a_recorder_is_healthy_while_it_sends_heartbeats(conn: psycopg.Connection[Any]) -> None:
    assert problem_of("recorder") == "no recorder has ever run here"
    conn.execute(
        """INSERT INTO feature_platform.heartbeat (symbol, state, state_at, first_at, beat_at)
           VALUES ('A', 'down', now(), now(), now() - interval '5 minutes')"""
    )
    problem = problem_of("recorder")
    assert problem is not None
    assert problem.startswith("no recorder is running: its last heartbeat was 30")
    conn.execute("UPDATE feature_platform.heartbeat SET beat_at = now()")
    assert problem_of("recorder") is None


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_daemon_without_a_heartbeat_is_not_healthy(instance: dg.DagsterInstance) -> None:
    assert instance.get_ref()
    assert problem_of("daemon") == (
        "the daemon is not running: no heartbeat within 5 minutes of"
        " MONITORING, QUEUED_RUN_COORDINATOR, SCHEDULER, SENSOR"
    )


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_the_command_prints_the_reason_and_fails(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = run_on(database, "health", "recorder")
    assert done.returncode == 1
    assert only_line(done.stderr) == "feature-platform: no recorder has ever run here"
    monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
    home = str(tmp_path)
    where = {"FEATURE_PLATFORM_DATABASE_URL": database, "FEATURE_PLATFORM_HOME": home}
    missing = rejection(run("health", "daemon", **where))
    assert "DAGSTER_POSTGRES_URL is not set" in missing
    # Dagster has run in this home, so its database is `dagster` on this server: one that does not
    # answer, since on a server of other tests a Dagster may be at work.
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").touch()
    where["FEATURE_PLATFORM_DATABASE_URL"] = "postgresql://me@127.0.0.1:9/platform"
    found = run("health", "daemon", **where)
    assert found.returncode == 1
    assert "cannot connect to user=me dbname=dagster host=127.0.0.1 port=9" in found.stderr
