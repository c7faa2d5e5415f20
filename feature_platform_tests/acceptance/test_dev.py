"""`make dev` as a newcomer sees it: started for real, and its pages looked at in a real browser.

Its screenshots stay in `test-artefacts/`, for a person to look at.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from playwright.sync_api import BrowserContext, Page, ViewportSize, sync_playwright

from feature_platform.database import connect
from feature_platform_tests.fix_database import POSTGRES_URL, Databases, Engine
from feature_platform_tests.fix_dev import PROMISED, Dev, is_alive, run_dev
from feature_platform_tests.fix_embedded import CHECKOUT
from feature_platform_tests.fix_environment import passable_directory
from feature_platform_tests.fix_processes import wait_until

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

PATIENCE_MS = 120_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def dev(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Dev]:
    """Yield the platform as `make dev` runs it, once it shows its definitions.

    It starts a database of its own unless the tests are given a server.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(passable_directory())
        environment = {}
        if engine == "timescaledb" or os.environ.get(POSTGRES_URL):
            databases: Databases = request.getfixturevalue("databases")
            url = stack.enter_context(databases.simulated())
            environment["FEATURE_PLATFORM_DATABASE_URL"] = url
        running = stack.enter_context(run_dev(folder, **environment))
        running.wait_for_page(f"{running.url}/server_info")
        yield running


@pytest.fixture(scope="module")
def connection(dev: Dev) -> Iterator[psycopg.Connection[Any]]:  # noqa: ARG001, it is to run
    """Yield a connection to its database."""
    with connect() as opened:
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    """Yield a browser that loads the scripts of Dagster's pages once for all tests."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_FLAGS)
        try:
            size: ViewportSize = {"width": 1900, "height": 1000}
            yield launched.new_context(viewport=size, reduced_motion="reduce")
        finally:
            launched.close()


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    """Yield a page of the browser."""
    opened = browser.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    yield opened
    opened.close()


def keep(page: Page, name: str) -> None:
    """Store a picture of a page once the page has been drawn."""
    ARTEFACTS.mkdir(exist_ok=True)
    page.wait_for_load_state("networkidle")
    page.screenshot(path=ARTEFACTS / f"{name}.png", animations="disabled")


ALL_ROWS = """
    SELECT count(DISTINCT symbol) = 5 AND count(*) > 13000
       AND count(*) = (SELECT count(*) FROM ohlcv_1m WHERE ts < feature_platform.due_until())
      FROM features_1m
"""


def test_the_graph_has_data_in_it(
    dev: Dev, connection: psycopg.Connection[Any], page: Page
) -> None:
    dev.wait_until(connection, ALL_ROWS, "a row for every bar of two days of five symbols")
    page.goto(f"{dev.url}/asset-groups")
    for name in ("exchange_feed", "ohlcv_1m", "features_1m", "features_1m_policy"):
        page.get_by_text(name, exact=True).first.wait_for()
    # A sensor has reported the newest bars and every check; no check fails.
    page.get_by_text(re.compile(r"^(\d+) / \1 Passed$")).first.wait_for()
    page.get_by_text(re.compile(r"(?!0%)\d+% filled")).first.wait_for()
    keep(page, "graph")


def test_the_checks_are_shown_and_one_is_run_by_a_click(dev: Dev, page: Page) -> None:
    page.goto(f"{dev.url}/assets/ohlcv_1m?view=checks&checkDetail=bars_sane")
    page.get_by_role("button").filter(has_text=re.compile("^Execute$")).click()
    page.goto(f"{dev.url}/assets/ohlcv_1m?view=checks&checkDetail=bars_sane&tab=execution-history")
    page.get_by_text("Succeeded").first.wait_for()
    page.goto(f"{dev.url}/assets/features_1m?view=checks&checkDetail=stored_equals_recomputed")
    page.get_by_text("rows checked, all equal").first.wait_for()
    keep(page, "check")


REPORTED = """query Reported($day: String!) {
    assetOrError(assetKey: {path: ["features_1m"]}) { ... on Asset {
        assetMaterializations(partitions: [$day]) { metadataEntries { label } }
    } }
}"""


def reported(dev: Dev, day: str) -> set[str]:
    """Return the names of the metadata that materialisations of a day have reported."""
    body = {"query": REPORTED, "variables": {"day": day}}
    answer = httpx.post(f"{dev.url}/graphql", json=body, timeout=PROMISED).json()
    found = answer["data"]["assetOrError"].get("assetMaterializations", ())
    return {entry["label"] for one in found for entry in one["metadataEntries"]}


def test_a_day_is_materialised_by_a_click_and_drawn(dev: Dev, page: Page) -> None:
    page.goto(f"{dev.url}/assets/features_1m")
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="All", exact=True).click()
    dialog.get_by_role("button", name="Launch backfill").click()
    # The day is shown with its numbers and its picture once the run has reported it. A page that is
    # open already does not follow.
    yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")
    wait_until(
        lambda: "plot" in reported(dev, yesterday), "the day is reported", PROMISED, interval=1
    )
    page.goto(f"{dev.url}/assets/features_1m?view=partitions&partition={yesterday}")
    page.get_by_text("Show Markdown").first.click()
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


def test_a_gap_is_found_and_filled_without_a_command(
    dev: Dev, connection: psycopg.Connection[Any], page: Page
) -> None:
    start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=20)
    gap = (start, start + timedelta(minutes=20))
    before = connection.execute(BARS, gap).fetchall()
    assert len(before) == 20
    connection.execute(CUT, gap)
    dev.wait_until(connection, FILLED, "the gap is filled", *gap)
    assert connection.execute(BARS, gap).fetchall() == before
    page.goto(f"{dev.url}/assets/ohlcv_1m?view=partitions&partition={start:%Y-%m-%d}")
    page.get_by_text("rest_backfill").first.wait_for()
    page.get_by_text("bars inserted").first.wait_for()
    keep(page, "filled")
    page.goto(f"{dev.url}/runs")
    page.get_by_text("rest_backfill").first.wait_for()
    keep(page, "runs")


def test_ctrl_c_ends_everything(dev: Dev, connection: psycopg.Connection[Any]) -> None:
    """The last of this file, as the file's processes are gone after it."""
    members = dev.children()
    assert len(members) > 4
    connection.close()
    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(60) in (0, 130), dev.log_text()[-5000:]
    assert [process for process in members if is_alive(process)] == []
    assert "Traceback" not in dev.log_text()
