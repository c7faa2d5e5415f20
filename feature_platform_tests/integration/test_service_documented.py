"""Guards against examples of docs/service.md that fail, or that need more rights than a reader."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from feature_platform_tests.fix_embedded import CHECKOUT
from feature_platform_tests.fix_engine import refresh
from feature_platform_tests.fix_processes import insert_bars
from feature_platform_tests.fix_service import ServedDatabase

PAGE = (CHECKOUT / "docs" / "service.md").read_text(encoding="utf-8")
END = datetime(2026, 2, 2, tzinfo=UTC)


@pytest.fixture(scope="module", autouse=True)
def examples(served: ServedDatabase) -> None:
    """Store the bars of the symbols and the day of the examples."""
    for symbol in ("BTC/USDT", "ETH/USDT"):
        insert_bars(served.conn, symbol, END - timedelta(days=2), 2880)
    refresh(served.conn)


def test_the_examples_of_the_page_run(served: ServedDatabase) -> None:
    service, _ = served.serve(stale_after=1e9)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-c", code.replace("http://127.0.0.1:8000", service.url)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("BTC/USDT 2026-02-01T23:59:00Z ")
    assert "\nETH/USDT 2026-02-01T23:59:00Z " in done.stdout
    assert "\n2026-02-01 23:59:00+00:00 " in done.stdout


@pytest.mark.parametrize(
    "path",
    [
        "/readyz",
        "/v1/symbols",
        "/v1/features/latest?symbol=BTC/USDT",
        "/v1/features?symbol=BTC/USDT&start=2026-02-01&end=2026-02-02",
        "/v1/features?symbol=BTC/USDT&start=2020-02-01&end=2020-02-02",
        "/v1/features?symbol=BTC/USDT&start=2026-02-01&end=2026-02-02&symbol_no=1",
    ],
)
def test_the_reader_role_has_enough_rights(served: ServedDatabase, path: str) -> None:
    _, http = served.serve(role="feature_platform_reader")
    assert http.get(path).status_code == 200
    assert "feature_platform_database_up 1.0" in http.get("/metrics").text
