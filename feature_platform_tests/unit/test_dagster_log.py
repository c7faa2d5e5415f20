"""Guards against repeated records, tracebacks and lost lines in Dagster's log of a terminal."""

from __future__ import annotations

import json

from feature_platform.dev.dagster_log import DagsterLog


def record(event: str, level: str = "info", **more: object) -> str:
    return json.dumps({"event": event, "logger": "dagster", "level": level, **more})


def shown(*lines: str) -> list[str]:
    log = DagsterLog()
    return [text for line in lines if (text := log.show(line)) is not None]


def test_a_record_is_shown_as_one_line() -> None:
    assert shown(record("Launching Dagster services..."), record("slow", "warning")) == [
        "Launching Dagster services...",
        "WARNING slow",
    ]


def test_a_tick_has_one_line_with_its_result() -> None:
    assert shown(
        record("Checking for new runs for sensor: run_checks"),
        "INFO:dagster.daemon.SensorDaemon:Checking for new runs for sensor: run_checks",
        record("Sensor run_checks skipped: 24 events reported; failing: none"),
        "INFO:dagster.daemon.SensorDaemon:Sensor run_checks skipped: 24 events reported",
    ) == ["run_checks: 24 events reported; failing: none"]


def test_a_repeated_record_is_omitted() -> None:
    twice = "two\nlines"
    assert shown(
        record("one"), "INFO:dagster.daemon:one", record(twice), "INFO:x:two", "lines"
    ) == [
        "one",
        "two: lines",
    ]


def test_a_traceback_is_reduced_to_its_first_line() -> None:
    error = (
        "Sensor daemon caught an error for sensor validation\n"
        "dagster.DagsterUserCodeUnreachableError: Could not reach user code server\n\n"
        'Stack Trace:\n  File "a.py", line 1, in f\n    g()\n'
    )
    (line,) = shown(
        record(error, "error"),
        "ERROR:dagster.daemon:Sensor daemon caught an error for sensor validation",
        "dagster.DagsterUserCodeUnreachableError: Could not reach user code server",
        "",
        "Stack Trace:",
        '  File "a.py", line 1, in f',
        "    g()",
    )
    assert line == (
        "ERROR Sensor daemon caught an error for sensor validation:"
        " dagster.DagsterUserCodeUnreachableError: Could not reach user code server"
    )


def test_an_exception_of_a_record_is_named() -> None:
    cause = ["<class 'ValueError'>", "ValueError('no')", "<traceback object at 0x7f>"]
    assert shown(record("it failed", "error", exc_info=cause)) == [
        "ERROR it failed: ValueError('no')"
    ]


def test_a_crash_is_logged_with_its_reason() -> None:
    lines = ("Traceback (most recent call last):", '  File "a.py", line 1', "    f()", "E: why")
    assert shown(*lines, "and more") == ["E: why", "and more"]


def test_a_lost_database_gets_one_line() -> None:
    lines = (
        "WARNING:root:Retrying failed database connection: connection refused",
        "\tIs the server running locally?",
        "DETAIL:  recovery",
        "",
        "(Background on this error at: https://sqlalche.me/e/20/e3q8)",
    )
    assert shown(*lines, *lines) == [
        "WARNING Retrying failed database connection: connection refused"
    ]


def test_plain_lines_pass_unchanged() -> None:
    assert shown("plain", "  indented", "{no json") == ["plain", "  indented", "{no json"]


def test_an_exception_of_a_record_has_no_trace_but_its_cause() -> None:
    trace = '\\n\\nStack Trace:\\n  File "a.py", line 1, in f\\n    g()\\n'
    caused = "\\nThe above exception was caused by the following exception:\\n"
    error = (
        f"SensorError('evaluation_fn{trace}{caused}UserError: away{trace}{caused}Root: why{trace}')"
    )
    (line,) = shown(record("it failed", "error", exc_info=["<class>", error, "<trace>"]))
    assert line == "ERROR it failed: SensorError('evaluation_fn: caused by Root: why"


def test_a_full_disk_is_one_line_whatever_fails() -> None:
    lines = shown(
        record("Sensor a: DiskFull: No space left on device", "error"),
        record("Sensor b: DiskFull: No space left on device", "error"),
        record("Retrying: FATAL: the disk is full", "warning"),
        record("another", "error"),
    )
    assert lines == [
        "ERROR the disk is full: Sensor a: DiskFull: No space left on device",
        "ERROR another",
    ]


def test_trouble_on_a_full_disk_is_one_line() -> None:
    """A server that cannot write ends, and Dagster only finds that it cannot connect."""
    log = DagsterLog(lambda: True)
    lines = (
        record("a run has begun"),
        record("Failed to add heartbeat: too many retries for DB connection", "error"),
        "WARNING:root:Retrying failed database connection: connection refused",
        "Traceback (most recent call last):",
        "OperationalError: connection refused",
        "\tIs the server running locally?",
        "The above exception was the direct cause of the following exception:",
        record("a run has ended"),
    )
    assert [text for line in lines if (text := log.show(line)) is not None] == [
        "a run has begun",
        "ERROR the disk is full: Failed to add heartbeat: too many retries for DB connection",
        "a run has ended",
    ]
