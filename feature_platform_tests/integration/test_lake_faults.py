"""Guards against a lake that a fault leaves half written, or silent."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from errno import EDQUOT, ENOSPC
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import boto3
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from feature_platform import read_features
from feature_platform.database import connect
from feature_platform.errors import UserError
from feature_platform.lake import delta
from feature_platform.lake.delta import errors_at
from feature_platform.lake.sync import sync
from feature_platform.lake.verify import verify
from feature_platform.settings import get_settings
from feature_platform_tests.fix_lake import DAY, FIRST, TIMES, Lake
from feature_platform_tests.fix_processes import PATIENCE

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
    # Threads of the library panic as well.
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("feature-platform: ")
    assert "File too large" in failed.stderr
    for name in TIMES:
        assert_whole_days(lake, name)
    done = run_sync()
    assert done.returncode == 0, done.stderr
    lake.assert_equal()


@pytest.mark.parametrize("number", [ENOSPC, EDQUOT])
def test_the_error_of_a_full_disk_names_the_remedy(number: int) -> None:
    with (
        pytest.raises(UserError, match=r"x: the disk is full; .* free some space, and"),
        errors_at("x"),
    ):
        raise OSError(number, os.strerror(number))


def test_panics_are_dropped_only_where_an_error_has_the_reason() -> None:
    """Other text of native code is printed, and an unknown error keeps the panic."""
    script = """
import os, sys
from feature_platform.cli.panics import without_panics
from feature_platform.errors import UserError
PANIC = "\\nthread 'worker' (7) panicked at a.rs:1:2:\\nAlready shut down\\nnote: run with more\\n"
try:
    with without_panics():
        os.write(2, f"first\\n{PANIC}last\\n".encode())
        print("at once", file=sys.stderr)
        raise {}("x")
except {}:
    print("end", file=sys.stderr)
"""
    shown = {
        error: subprocess.run(
            [sys.executable, "-c", script.replace("{}", error)],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
        for error in ("UserError", "ValueError")
    }
    assert shown["UserError"] == "at once\nfirst\nlast\nend\n"
    assert "panicked at a.rs" in shown["ValueError"]


def test_an_older_copy_of_the_lake_is_rejected_until_it_is_written_again(lake: Lake) -> None:
    lake.sync()
    shutil.copytree(lake.path, lake.path.with_name("copy"))
    lake.correct("A", FIRST + DAY)
    lake.sync()
    shutil.rmtree(lake.path)
    lake.path.with_name("copy").rename(lake.path)
    with pytest.raises(UserError, match=r"does not have version \d+ .*: run .*lake sync"):
        read_features("A", FIRST, FIRST + 9 * DAY, as_="arrow")
    with pytest.raises(UserError, match=r"is older than the database: .* --rebuild"):
        lake.sync()
    lake.sync(rebuild=True)
    lake.assert_equal()


def test_commits_that_the_database_does_not_know_are_undone(lake: Lake) -> None:
    """A database from a backup, or after a fail-over, has lost its newest transactions."""
    lake.sync()
    for symbol in ("A", "B"):
        table = delta.open_table("features_1m")
        assert table is not None
        rows = table.to_pyarrow_table(filters=[("symbol", "=", symbol)])
        wrong = rows.set_column(
            rows.column_names.index("vol"), "vol", pa.array(np.full(rows.num_rows, 77.0))
        )
        delta.replace(table, "features_1m", wrong, f"symbol = '{symbol}'")
        sources: tuple[Any, ...] = ("lake", None)
        for source in sources:
            found = read_features(symbol, FIRST, FIRST + 9 * DAY, source=source)
            stored = read_features(symbol, FIRST, FIRST + 9 * DAY, source="database")
            assert found.equals(stored)
        lake.correct("it's", FIRST + 2 * DAY)
        lake.sync()
        lake.assert_equal()


def test_a_place_that_cannot_be_a_lake_is_one_line(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_LAKE", "/etc/passwd")
    get_settings.cache_clear()
    with pytest.raises(UserError, match=r"/etc/passwd/ohlcv_1m: .*Not a directory"):
        lake.sync()


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


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Yield the URL of a local S3 server; its start takes longer than a test."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # In another process: the library holds Python's lock while it waits for an answer.
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(ConnectionRefusedError),
                wait=wait_fixed(0.1),
                stop=stop_after_delay(LONGEST),
            ):
                with attempt, socket.create_connection(("127.0.0.1", port)):
                    pass
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture
def bucket(lake: Lake, store: str, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Move the lake into a new bucket of the server."""
    name = f"lake-{uuid4().hex}"
    for variable, value in {
        "AWS_ENDPOINT_URL": store,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "FEATURE_PLATFORM_LAKE": f"s3://{name}/test",
    }.items():
        monkeypatch.setenv(variable, value)
    get_settings.cache_clear()
    boto3.client("s3", endpoint_url=store, region_name="us-east-1").create_bucket(Bucket=name)
    return lake


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


# A server that keeps each connection, and ends its answer too early.
STALLING = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
kept = []
while True:
    kept.append(server.accept()[0])
    kept[-1].recv(65536)
    kept[-1].sendall(sys.argv[1].encode())
"""


@pytest.mark.parametrize(
    "answer", ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<"], ids=["nothing", "a part"]
)
def test_an_object_store_that_stalls_is_an_error_in_time_and_the_next_sync_mends_it(
    bucket: Lake, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    good = os.environ["AWS_ENDPOINT_URL"]
    bucket.sync(until=FIRST + DAY)
    script = [sys.executable, "-c", STALLING, answer]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with monkeypatch.context() as shorter:
            # In production 20 s for a request, and 40 s with its retries.
            shorter.setitem(delta._REMOTE, "timeout", "2s")
            shorter.setitem(delta._REMOTE, "retry_timeout", "4s")
            began = time.monotonic()
            with pytest.raises(UserError, match="the object store does not answer") as caught:
                bucket.sync()
            with pytest.raises(UserError, match="the object store does not answer"):
                read_features("A", FIRST, FIRST + DAY, source="lake")
        server.kill()
    assert time.monotonic() - began < PATIENCE
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", good)
    bucket.sync()
    for report in verify(bucket.conn):
        assert report.equal
        assert report.days == 3 * 4
