"""Nothing but the platform's clock says what time it is, but for what is the wall clock's."""

from __future__ import annotations

import re

import pytest

from feature_platform_tests.fix_embedded import CHECKOUT

_WALL = re.compile(
    r"time\.time(?:_ns)?\(|datetime\.now\(|utcnow\(|clock_timestamp\(|current_timestamp|(?<![\w.])now\(\)",
    re.IGNORECASE,
)

# Where the wall clock is asked, in lines that hold such a text, and why it is meant.
ALLOWED = {
    "feature_platform/clock.py": "time.time_ns",  # what the platform's is made of
    "sql/010_guard.sql": "",  # when a version of the schema was set up, and how long locks take
    "sql/012_clock.sql": "",  # what the platform's is made of
    "sql/025_origin.sql": "decided_at",  # decides whether there may be another clock
    "sql/upgrade/002.sql": "pg_get_expr",  # what old databases have instead
    "sql/070_timescaledb.sql": "",  # a job of the database has no other clock
    "sql/queries/status.sql": "h.timestamp",  # Dagster's own heartbeats
    "feature_platform/orchestration/cursors.py": "time.time()",  # it ticks by the wall clock
    "feature_platform/orchestration/sensors.py": "heartbeat",
    "feature_platform/orchestration/purge.py": "before = ",  # the age of what Dagster keeps
    "feature_platform/exchange/retry.py": "(when - ",  # a date of HTTP
    "feature_platform/exchange/client.py": "time.time()",  # the exchange's clock may differ
    "feature_platform/embedded/cluster.py": "oldest = ",  # the age of files
}
FILES = sorted(
    path.relative_to(CHECKOUT).as_posix()
    for folder, pattern in (("feature_platform", "*.py"), ("sql", "*.sql"))
    for path in (CHECKOUT / folder).rglob(pattern)
)


@pytest.mark.parametrize("file", FILES)
def test_the_wall_clock_is_asked_only_where_it_is_meant(file: str) -> None:
    lines = (CHECKOUT / file).read_text(encoding="utf-8").splitlines()
    asked = [line for line in lines if _WALL.search(re.split("--|#", line)[0])]
    assert [line for line in asked if ALLOWED.get(file, line + "?") not in line] == []
