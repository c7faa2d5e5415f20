"""Guards against a log of serves that is wrong, delays an answer, or loses rows silently."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from feature_platform.service import serve_log
from feature_platform.service.rows import COLUMNS
from feature_platform.views import FeatureView, bar, catalog
from feature_platform_tests.fix_engine import refresh
from feature_platform_tests.fix_processes import value, wait_until
from feature_platform_tests.fix_service import ServedDatabase

READER = "feature_platform_reader"
LATEST = "/v1/features/latest"
COUNT = "SELECT count(*) FROM feature_platform.served"
LOGGED = "SELECT * FROM feature_platform.served WHERE symbol = %s ORDER BY id"
FULL_DISK = """
    CREATE FUNCTION pg_temp.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full';
    END
    $$;
    CREATE TRIGGER full_disk BEFORE INSERT ON feature_platform.served
        FOR EACH STATEMENT EXECUTE FUNCTION pg_temp.full_disk();
"""
CORRECT = "UPDATE ohlcv_1m SET vol = vol + 1 WHERE symbol = %s AND ts >= %s"
MINUTE = timedelta(minutes=1)


def logging_client(served: ServedDatabase, **settings: Any) -> httpx.Client:
    """Return a client of a service with the reader's rights that logs its answers."""
    _, http = served.serve(role=READER, **{"serve_log": 1.0, **settings})
    return http


def newest(http: httpx.Client, *symbols: str, path: str = LATEST) -> list[dict[str, Any]]:
    answer = http.get(path, params={"symbol": symbols})
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["rows"]
    return rows


def logged(served: ServedDatabase, symbol: str, count: int) -> list[Any]:
    """Wait for so many rows of a symbol in the log, and return them."""
    cursor = served.conn.cursor(row_factory=psycopg.rows.namedtuple_row)

    def found() -> list[Any]:
        return cursor.execute(LOGGED, [symbol]).fetchall()

    wait_until(lambda: len(found()) >= count, "the rows are in the log")
    assert len(found()) == count
    return found()


def counts(http: httpx.Client) -> dict[str, float]:
    """Return the metrics of the log, by outcome."""
    name = "feature_platform_serve_log_rows_total"
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


def test_the_log_has_the_rows_of_the_answers(served: ServedDatabase) -> None:
    http = logging_client(served)
    first = served.add("L/1", 60)
    served.add("L/2", 1500)
    answers = newest(http, "L/1", "L/2")
    served.conn.execute(CORRECT, ["L/1", first])
    served.conn.execute(
        "SELECT feature_platform.refresh_slice(%s, %s, feature_platform.dirty_horizon())",
        [first, first + 30 * MINUTE],
    )
    answers += newest(http, "L/1")
    rows = [*logged(served, "L/1", 2), *logged(served, "L/2", 1)]
    for row, answer in zip(rows, (answers[0], answers[2], answers[1]), strict=True):
        assert (row.view, row.version, row.symbol) == ("features_1m", 0, answer["symbol"])
        assert row.bucket == datetime.fromisoformat(answer["bucket"])
        assert [repr(number) for number in row.values] == [
            repr(None if answer[name] is None else float(answer[name])) for name in COLUMNS[2:-1]
        ]
        for name in ("refresh_no", "symbol_no", "waiting_no"):
            assert getattr(row, name) == answer[name]
        age = (row.served_at - row.bucket - MINUTE).total_seconds()
        assert age == pytest.approx(answer["age_seconds"], abs=1e-5)
    assert rows[0].waiting == Multirange()
    end = first + 60 * MINUTE
    assert rows[1].waiting == Multirange([Range(end - MINUTE, end)])
    assert rows[1].waiting_no == rows[0].symbol_no


def test_the_log_has_the_version_of_a_view(served: ServedDatabase) -> None:
    http = logging_client(served)
    served.add("LV", 3)
    for close in (bar.close, bar.close + 1):
        catalog.apply(served.conn, [FeatureView("logged", "1 minute", {"x": close, "y": bar.vol})])
        catalog.refresh_views(served.conn)
        newest(http, "LV", path="/v1/views/logged/latest")
    first, second = logged(served, "LV", 2)
    assert (first.view, first.version, second.version) == ("logged", 1, 2)
    assert (second.values[0] - first.values[0], len(second.values)) == (1.0, 2)


def test_special_values_are_logged(served: ServedDatabase) -> None:
    http = logging_client(served)
    served.add("SPECIAL", 3)
    served.conn.execute(
        "UPDATE features_1m SET volume_z = 'NaN', vwap_gap = 'Infinity', vol = '-0',"
        " log_return = 5e-324 WHERE symbol = 'SPECIAL'"
    )
    newest(http, "SPECIAL")
    ((*_, values, _served_at),) = logged(served, "SPECIAL", 1)
    found = dict(zip(COLUMNS[2:-1], values, strict=True))
    assert math.isnan(found["volume_z"])
    assert (found["vwap_gap"], repr(found["vol"]), found["log_return"]) == (
        math.inf,
        "-0.0",
        5e-324,
    )


def test_without_the_setting_nothing_is_logged(served: ServedDatabase) -> None:
    served.add("OFF", 3)
    newest(served.http, "OFF")
    assert "serve_log" not in served.http.get("/metrics").text
    http = logging_client(served)
    newest(http, "OFF")
    logged(served, "OFF", 1)  # the row of the second service only


def test_a_part_of_the_answers_is_logged_as_a_whole(served: ServedDatabase) -> None:
    http = logging_client(served, serve_log=0.3)
    served.add("P1", 3)
    served.add("P2", 3)
    for _ in range(300):
        newest(http, "P1", "P2")
    wait_until(lambda: counts(http)["written"] > 0, "a batch is written")
    wait_until(
        lambda: counts(http)["written"] == value(served.conn, COUNT + " WHERE symbol ~ '^P'"),
        "all batches are written",
    )
    found = logged(served, "P1", len(logged_now(served, "P2")))
    assert 50 < len(found) < 130  # 90 expected; 5 standard deviations are 40


def logged_now(served: ServedDatabase, symbol: str) -> list[Any]:
    return served.conn.execute(LOGGED, [symbol]).fetchall()


def test_a_full_queue_drops_rows_and_says_so(
    served: ServedDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Answers do not wait while the log cannot be written; the rest is written later."""
    monkeypatch.setattr(serve_log, "_PATIENCE", 0.3)
    monkeypatch.setattr(serve_log, "_RETRY_SECONDS", 0.1)
    served.add("FULL", 3)
    monkeypatch.setattr(serve_log.ServeLog.__init__, "__kwdefaults__", {"most": 20})
    http = logging_client(served)
    newest(http, "FULL")
    logged(served, "FULL", 1)
    with served.conn.transaction():
        served.conn.execute("LOCK TABLE feature_platform.served IN ACCESS EXCLUSIVE MODE")
        for _ in range(50):
            newest(http, "FULL")
        assert counts(http) == {"written": 1, "dropped": 30}
        wait_until(
            lambda: "(rows that wait: 20): canceling statement due to" in caplog.text,
            "the failure is logged",
        )
    assert "the log of serves dropped rows, 1 so far: the database does not store" in caplog.text
    logged(served, "FULL", 21)
    assert counts(http) == {"written": 21, "dropped": 30}
    newest(http, "FULL")
    logged(served, "FULL", 22)


def test_a_full_disk_of_the_database_harms_no_answer(
    served: ServedDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    served.add("DISK", 3)
    served.conn.execute(FULL_DISK)
    try:
        http = logging_client(served)
        newest(http, "DISK")
        wait_until(lambda: "the disk is full (rows that wait: 1)" in caplog.text, "it is logged")
        newest(http, "DISK")
    finally:
        served.conn.execute("DROP TRIGGER full_disk ON feature_platform.served")
    logged(served, "DISK", 2)


def test_a_log_without_its_right_harms_no_answer(
    served: ServedDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    served.add("RIGHT", 3)
    served.conn.execute(f"REVOKE INSERT ON feature_platform.served FROM {READER}")
    try:
        http = logging_client(served)
        newest(http, "RIGHT")
        wait_until(lambda: "permission denied for table served" in caplog.text, "it is logged")
        newest(http, "RIGHT")
    finally:
        served.conn.execute(f"GRANT INSERT ON feature_platform.served TO {READER}")
    logged(served, "RIGHT", 2)


def test_the_log_goes_on_after_the_server_has_ended_its_session(served: ServedDatabase) -> None:
    http = logging_client(served)
    served.add("AGAIN", 3)
    for count in (1, 2, 3):
        newest(http, "AGAIN")
        logged(served, "AGAIN", count)
        served.conn.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'feature_platform serve'"
        )


def test_a_service_that_stops_writes_its_rows(
    served: ServedDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    served.add("STOP", 3)
    service, http = served.serve(role=READER, serve_log=1.0)
    newest(http, "STOP")
    service.__exit__()
    assert len(logged_now(served, "STOP")) == 1
    service, http = served.serve(role=READER, serve_log=1.0)
    with served.conn.transaction():
        served.conn.execute("LOCK TABLE feature_platform.served IN ACCESS EXCLUSIVE MODE")
        newest(http, "STOP")
        service.__exit__()
    assert "the log of serves dropped rows, 1 so far: the service stops" in caplog.text
    assert len(logged_now(served, "STOP")) == 1


def test_the_retention_deletes_old_rows_of_the_log(served: ServedDatabase) -> None:
    insert = """
        INSERT INTO feature_platform.served
            (view, symbol, bucket, refresh_no, symbol_no, "values", served_at)
        SELECT 'features_1m', 'OLD', now(), 1, 1, '{}', now() - age * interval '1 day'
        FROM generate_series(1, 20) AS age
    """
    count = COUNT + " WHERE symbol = 'OLD'"
    served.conn.execute(insert)
    served.conn.execute("CALL feature_platform.apply_retention()")
    assert value(served.conn, count) == 6  # the default is seven days
    served.conn.execute("SELECT set_features_1m_retention(served => '3 days')")
    try:
        served.conn.execute("CALL feature_platform.apply_retention()")
        assert value(served.conn, count) == 2
        served.conn.execute("SELECT set_features_1m_retention(served => NULL)")
        served.conn.execute("UPDATE feature_platform.served SET served_at = '2020-01-01'")
        served.conn.execute("CALL feature_platform.apply_retention()")
        assert value(served.conn, count) == 2
        with pytest.raises(psycopg.errors.RaiseException, match="at least a day"):
            served.conn.execute("SELECT set_features_1m_retention(served => '1 hour')")
    finally:
        served.conn.execute("SELECT set_features_1m_retention()")


def test_the_log_records_no_update_of_a_row(served: ServedDatabase) -> None:
    """A log line keeps the values that were served, whatever the row becomes."""
    http = logging_client(served)
    first = served.add("KEPT", 3)
    (before,) = newest(http, "KEPT")
    served.conn.execute(CORRECT, ["KEPT", first])
    refresh(served.conn)
    (after,) = newest(http, "KEPT")
    assert before["vol"] != after["vol"]
    rows = logged(served, "KEPT", 2)
    assert [row.values[1] for row in rows] == [before["vol"], after["vol"]]
    assert rows[0].refresh_no < rows[1].refresh_no
