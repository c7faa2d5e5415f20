"""Guards against a lake that a fault leaves half written, or silent."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from deltalake import DeltaTable
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from feature_platform.database import connect
from feature_platform.lake.sync import sync
from feature_platform.lake.verify import verify
from feature_platform.settings import get_settings
from feature_platform_tests.fix_lake import DAY, FIRST, TIMES, Lake

SYNC = [sys.executable, "-m", "feature_platform.cli.app", "lake", "sync"]
LONGEST = 120


def run_sync(**options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        SYNC, check=False, capture_output=True, text=True, timeout=LONGEST, **options
    )


def assert_whole_days(lake: Lake, name: str) -> None:
    """Assert that a reader sees only whole days."""
    if DeltaTable.is_deltatable(str(lake.path / name)):
        rows = lake.rows(name)
        days = [moment.date() for moment in rows[TIMES[name]].to_pylist()]
        counts = Counter(zip(rows["symbol"].to_pylist(), days, strict=True))
        assert set(counts.values()) <= {1440}


def files(lake: Lake) -> int:
    return len(list(lake.path.rglob("*.parquet")))


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_killed_sync_leaves_whole_days_and_the_next_one_completes_them(
    lake: Lake, after: int
) -> None:
    with subprocess.Popen(SYNC) as process:
        end = time.monotonic() + LONGEST
        while files(lake) < after and process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert files(lake) >= after
    for name in TIMES:
        assert_whole_days(lake, name)
    lake.sync()
    lake.assert_equal()


def test_a_full_disk_is_one_line_and_the_next_sync_mends_it(lake: Lake) -> None:
    lake.sync(until=FIRST + DAY)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    failed = run_sync(preexec_fn=limit)
    assert failed.returncode == 2, failed.stderr
    # A thread of the library may have printed lines of its own before.
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("feature-platform: ")
    assert "File too large" in last
    for name in TIMES:
        assert_whole_days(lake, name)
    done = run_sync()
    assert done.returncode == 0, done.stderr
    lake.assert_equal()


def test_two_syncs_at_once_give_one_lake(lake: Lake, database: str) -> None:
    """Each commit holds the lock of its table, so that the other one waits."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            with connect(database) as connection:
                list(sync(connection))
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST)
    assert problems == []
    lake.assert_equal()
    assert all(report.equal for report in verify(lake.conn))


class Unavailable(BaseHTTPRequestHandler):
    """Answer every request with 503."""

    def do_GET(self) -> None:
        self.send_error(503, "Slow Down")

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@pytest.fixture
def bucket(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    """Move the lake into a bucket of a local S3 server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # In another process: the library holds Python's lock while it waits for an answer.
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "FEATURE_PLATFORM_LAKE": "s3://lake/test",
    }.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(EndpointConnectionError),
                wait=wait_fixed(0.1),
                stop=stop_after_delay(LONGEST),
            ):
                with attempt:
                    client.create_bucket(Bucket="lake")
            yield lake
        finally:
            process.kill()


def test_an_object_store_that_fails_is_one_line_and_the_next_sync_mends_it(
    bucket: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = os.environ["AWS_ENDPOINT_URL"]
    bucket.sync(until=FIRST + DAY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Unavailable) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        failed = run_sync()
        server.shutdown()
    assert failed.returncode == 2, failed.stderr
    assert failed.stderr.count("\n") == 1
    assert "503" in failed.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", good)
    done = run_sync()
    assert done.returncode == 0, done.stderr
    for report in verify(bucket.conn):
        assert report.equal
        assert report.days == 3 * 4
