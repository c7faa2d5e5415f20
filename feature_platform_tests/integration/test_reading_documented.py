"""Guards against examples of docs/reading.md that fail on a host without this package."""

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

PAGE = (CHECKOUT / "docs" / "reading.md").read_text(encoding="utf-8")
HTTP, SQL = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
END = datetime(2026, 2, 2, tzinfo=UTC)
# Python rejects the import of a module that is None here, as if it were not installed.
ABSENT = "import sys; sys.modules['feature_platform'] = None\n"


@pytest.fixture(scope="module", autouse=True)
def rows(served: ServedDatabase) -> None:
    """Store the bars of the symbols and the day of the examples."""
    for symbol in ("BTC/USDT", "ETH/USDT"):
        insert_bars(served.conn, symbol, END - timedelta(days=2), 2880)
    refresh(served.conn)


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ABSENT + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_http_example_runs_with_the_standard_library_alone(served: ServedDatabase) -> None:
    service, _ = served.serve(stale_after=1e9, api_key="0123456789abcdef")
    modules = re.findall(r"^(?:import|from) (\w+)", HTTP, re.MULTILINE)
    assert set(modules) <= sys.stdlib_module_names
    lines = _run(HTTP.replace("http://127.0.0.1:8000", service.url)).splitlines()
    assert [line.split()[0] for line in lines] == ["BTC/USDT", "ETH/USDT"]
    assert all(line.endswith(" fresh") for line in lines)


def test_the_sql_example_runs_without_this_package(served: ServedDatabase) -> None:
    url = re.search(r'DATABASE = "(.*)"', SQL)
    assert url is not None
    assert "adbc-driver-postgresql pyarrow" in PAGE
    first, *rest = _run(SQL.replace(url[1], served.url)).splitlines()
    assert first == "1440 ['bucket', 'last_close', 'log_return', 'volume_z']"
    count, number = rest[0].split()
    assert (count, float(number)) == ("count", 1440)
