"""Guards against code that reads the wall clock instead of the platform's clock."""

from __future__ import annotations

import re

import pytest

from feature_platform_tests.fix_embedded import CHECKOUT

_WALL = re.compile(
    r"time\.time(?:_ns)?\(|datetime\.now\(|utcnow\(|clock_timestamp\(|current_timestamp|(?<![\w.])now\(\)",
    re.IGNORECASE,
)

# The lines that may read the wall clock, by a part of their text, with the reason.
ALLOWED = {
    "feature_platform/clock.py": "time.time_ns",  # the source of the platform's clock
    "sql/010_guard.sql": "",  # when a version of the schema was set up, and how long locks take
    "sql/012_clock.sql": "",  # the source of the platform's clock
    "sql/025_origin.sql": "decided_at",  # decides whether there may be another clock
    "sql/upgrade/002.sql": "pg_get_expr",  # an older database has no other
    "sql/061_view_refresh.sql": "began",  # how long a step has taken
    "sql/063_view_versions.sql": "tried_at",  # the pause between two attempts
    "sql/070_timescaledb.sql": "",  # jobs of the database use the wall clock
    "sql/queries/status.sql": "h.timestamp",  # Dagster's own heartbeats
    "feature_platform/orchestration/cursors.py": "time.time()",  # Dagster uses the wall clock
    "feature_platform/orchestration/sensors.py": "heartbeat",
    "feature_platform/orchestration/purge.py": "before = ",  # the age of Dagster's records
    "feature_platform/dev/live_past.py": "clock = ",  # describes a session's clock
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
def test_only_the_listed_lines_read_the_wall_clock(file: str) -> None:
    lines = (CHECKOUT / file).read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if _WALL.search(re.split("--|#", line)[0])]
    assert [line for line in found if ALLOWED.get(file, line + "?") not in line] == []
