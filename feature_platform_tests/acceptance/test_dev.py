"""`make dev` as a newcomer sees it: started for real, and its pages looked at in a real browser.

Its screenshots stay in `test-artefacts/`, for somebody to look at.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import httpx
import psycopg
import pytest
from playwright.sync_api import Error, Page, sync_playwright

from feature_platform.database import database_url
from feature_platform.settings import get_settings
from feature_platform_tests.fix_embedded import CHECKOUT
from feature_platform_tests.fix_processes import COMMAND, value

CHROMIUM = shutil.which("chromium")
ARTEFACTS = CHECKOUT / "test-artefacts"

# Ours to start and stop, in a sandbox of its own already; it has no business outside.
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# The promise is two minutes, from the cut to the filled hole; a run of Dagster's takes seconds.
PROMISED = 120.0
PATIENCE_MS = 120_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


@dataclass(frozen=True)
class Dev:
    """A running `feature-platform dev`."""

    url: str
    process: subprocess.Popen[str]
    log: Path
    connection: psycopg.Connection[Any]

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, condition: LiteralString, what: str, *parameters: object) -> None:
        """Wait until a query gives true, no longer than is promised."""
        began = time.monotonic()
        while not value(self.connection, condition, *parameters):
            assert self.process.poll() is None, self.said()[-5000:]
            assert time.monotonic() - began < PROMISED, f"waited in vain: {what}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    """Yield the platform as `make dev` runs it, once it shows its definitions."""
    folder = Path(tempfile.mkdtemp(prefix="feature_platform-"))
    port, exchange_port = free_port(), free_port()
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith("FEATURE_PLATFORM_")
    }
    environment["FEATURE_PLATFORM_HOME"] = str(folder / "home")
    log = folder / "log"
    with pytest.MonkeyPatch.context() as patch, log.open("w") as out:
        process = subprocess.Popen(
            [
                *(COMMAND[0], *COMMAND[3:], "dev"),  # warnings of Dagster's are not ours to mend
                *("--port", str(port), "--exchange-port", str(exchange_port)),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for_page(f"{url}/server_info", process, log)
            patch.setenv("FEATURE_PLATFORM_HOME", str(folder / "home"))
            get_settings.cache_clear()
            with psycopg.connect(database_url(), autocommit=True) as connection:
                yield Dev(url, process, log, connection)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)
    get_settings.cache_clear()


@pytest.fixture
def page() -> Iterator[Page]:
    """Yield a page of a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_FLAGS)
        try:
            opened = browser.new_page(viewport={"width": 1400, "height": 900})
            opened.set_default_timeout(PATIENCE_MS)
            yield opened
        finally:
            browser.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def wait_for_page(url: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()[-5000:]
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        try:
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.2)


def keep(page: Page, name: str) -> None:
    """Keep a picture of a page, as somebody sees it once it has been drawn."""
    ARTEFACTS.mkdir(exist_ok=True)
    page.wait_for_load_state("networkidle")
    page.screenshot(path=ARTEFACTS / f"{name}.png", animations="disabled")


ALL_ROWS = """
    SELECT count(DISTINCT symbol) = 5 AND count(*) > 13000
       AND count(*) = (SELECT count(*) FROM ohlcv_1m WHERE ts < feature_platform.due_until())
      FROM features_1m
"""


def test_the_graph_has_data_in_it(dev: Dev, page: Page) -> None:
    dev.wait_until(ALL_ROWS, "a row for every bar of two days of five symbols")
    page.goto(f"{dev.url}/asset-groups")
    for name in ("ohlcv_1m", "features_1m", "features_1m_policy"):
        page.get_by_text(name, exact=True).first.wait_for()
    # A sensor has told of the newest bars, and of every check: none of them fails.
    page.get_by_text(re.compile(r"\d+ / \d+ Passed")).first.wait_for()
    page.get_by_text(re.compile(r"(?!0%)\d+% filled")).first.wait_for()
    keep(page, "graph")


def test_the_checks_are_shown_and_one_is_run_by_a_click(dev: Dev, page: Page) -> None:
    page.goto(f"{dev.url}/assets/ohlcv_1m?view=checks&checkDetail=bars_sane")
    page.get_by_role("button").filter(has_text=re.compile("^Execute$")).click()
    page.goto(f"{dev.url}/assets/ohlcv_1m?view=checks&checkDetail=bars_sane&tab=execution-history")
    page.get_by_text("Succeeded").first.wait_for()
    page.goto(f"{dev.url}/assets/features_1m?view=checks&checkDetail=stored_equals_recomputed")
    page.get_by_text("rows, and all is well").first.wait_for()
    keep(page, "check")


def test_a_day_is_materialised_by_a_click_and_drawn(dev: Dev, page: Page) -> None:
    page.goto(f"{dev.url}/assets/features_1m")
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="All", exact=True).click()
    dialog.get_by_role("button", name="Launch backfill").click()
    # The day is shown with its numbers and its picture once the run has reported it.
    yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")
    link = page.get_by_text("Show Markdown").first
    for _ in range(12):  # what is open already does not follow
        page.goto(f"{dev.url}/assets/features_1m?view=partitions&partition={yesterday}")
        with suppress(Error):
            link.wait_for(timeout=10_000)
            break
    link.click()
    picture = page.get_by_role("img", name="close and volume_z")
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 500
    keep(page, "plot")


BARS = """
    SELECT ts, open, high, low, close, vol FROM ohlcv_1m
     WHERE symbol = 'ETH/USDT' AND ts >= %s AND ts < %s ORDER BY ts
"""
CUT = "DELETE FROM ohlcv_1m WHERE symbol = 'ETH/USDT' AND ts >= %s AND ts < %s"
FILLED = """
    SELECT count(*) = 1 FROM ohlcv_1m_gaps
     WHERE symbol = 'ETH/USDT' AND state = 'filled' AND start_ts = %s AND end_ts = %s
"""


def test_a_hole_is_found_and_filled_without_a_hand_on_anything(dev: Dev, page: Page) -> None:
    start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=20)
    hole = (start, start + timedelta(minutes=20))
    before = dev.connection.execute(BARS, hole).fetchall()
    assert len(before) == 20
    dev.connection.execute(CUT, hole)
    dev.wait_until(FILLED, "the hole is filled", *hole)
    assert dev.connection.execute(BARS, hole).fetchall() == before
    page.goto(f"{dev.url}/assets/ohlcv_1m?view=partitions&partition={start:%Y-%m-%d}")
    page.get_by_text("rest_backfill").first.wait_for()
    page.get_by_text("bars inserted").first.wait_for()
    keep(page, "filled")
    page.goto(f"{dev.url}/runs")
    page.get_by_text("rest_backfill").first.wait_for()
    keep(page, "runs")


def test_ctrl_c_ends_everything(dev: Dev) -> None:
    """The last of this file, as the file's processes are gone after it."""
    members = children_of(dev.process.pid)
    assert len(members) > 4
    dev.connection.close()
    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(60) in (0, 130), dev.said()[-5000:]
    assert [pid for pid in members if Path(f"/proc/{pid}").exists()] == []
    assert "Traceback" not in dev.said()


def children_of(pid: int) -> list[int]:
    """Return the process ids below a process."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *children_of(int(child))]
    return found
