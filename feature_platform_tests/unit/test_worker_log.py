"""The worker logs its refreshes with at most one line a second, and loses no count."""

from __future__ import annotations

import logging
import re
from datetime import timedelta

import pytest

from feature_platform.worker import RefreshLog

TOOK = timedelta(milliseconds=76)


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "feature_platform.worker")


def test_many_refreshes_are_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = RefreshLog(lambda: now)
    for number in range(101):  # ten seconds
        now = number / 10
        log.add_writes(rows=59, writes=1)
        log.add_run(rows=1, slices=1, took=TOOK)
        log.log()
    log.log(at_once=True)
    assert len(caplog.messages) == 11
    rows = [int(count) for line in caplog.messages for count in re.findall(r"(\d+) rows?", line)]
    assert sum(rows) == 101 * 60


def test_a_line_names_its_writes_its_slices_and_its_time(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = RefreshLog(lambda: now)
    log.add_writes(rows=59, writes=1)
    log.log()
    now = 5
    log.add_writes(rows=1200, writes=3)
    log.add_run(rows=10, slices=1, took=TOOK)
    log.log()
    assert caplog.messages == [
        "refreshed 59 rows after a write",
        "refreshed 1,200 rows after 3 writes and 10 rows in a slice, 76 ms",
    ]


def test_nothing_refreshed_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    log = RefreshLog()
    log.add_run(rows=0, slices=0, took=TOOK)
    log.log(at_once=True)
    assert caplog.messages == []
