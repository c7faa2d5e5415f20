"""Guards against lost bars and a flooded terminal while `make dev` runs on a full disk."""

from __future__ import annotations

import os
from functools import partial

import pytest

from feature_platform.database import connect
from feature_platform.verify import verify
from feature_platform_tests.fix_dev import PROMISED, run_dev
from feature_platform_tests.fix_embedded import fill, small_file_system
from feature_platform_tests.fix_environment import passable_directory
from feature_platform_tests.fix_processes import value, wait_until
from feature_platform_tests.integration.test_full_disk import write_wal_until_the_server_ends

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system"),
]


def test_a_full_disk_is_one_line_a_process_and_loses_no_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FEATURE_PLATFORM_DATABASE_URL", raising=False)
    with (
        small_file_system(400) as disk,
        passable_directory() as folder,
        run_dev(folder, FEATURE_PLATFORM_HOME=str(disk / "home")) as dev,
    ):
        dev.wait_for_page(f"{dev.url}/server_info")
        with connect() as connection:
            dev.wait_until(
                connection, "SELECT count(*) > 0 FROM features_1m", "the first rows are stored"
            )
        begun = len(dev.log_text())
        fill(disk, 0)
        write_wal_until_the_server_ends()

        def lines(process: str) -> list[str]:
            shown = dev.log_text()[begun:].splitlines()
            return [line for line in shown if f" {process} " in line and "the disk is full" in line]

        def is_named_twice(process: str) -> bool:
            return any("times in" in line for line in lines(process))

        for process in ("worker", "recorder", "dagster"):
            fill(disk, 0)  # the space that the server freed when it ended
            wait_until(
                partial(is_named_twice, process),
                f"{process} names the disk twice",
                PROMISED,
                details=dev.log_end,
            )
        full = dev.log_text()[begun:].splitlines()
        (disk / "filling").unlink()
        with connect() as connection:
            freed = value(connection, "SELECT now()")
            dev.wait_until(
                connection,
                "SELECT min(newest) > %s FROM (SELECT max(bucket) AS newest FROM features_1m"
                " GROUP BY symbol) AS rows",
                "rows of the time after it",
                freed,
            )
            missing = (
                "SELECT feature_platform.minutes_to_account() = 0"
                " AND NOT EXISTS (SELECT FROM ohlcv_1m_gaps WHERE state = 'open')"
            )
            dev.wait_until(connection, missing, "no minute is missing")
            report = verify(connection)
            assert (report.pending, report.mismatches) == (0, 0)
        assert len(full) < 20, full
