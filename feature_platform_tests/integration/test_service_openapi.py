"""Guards against an OpenAPI description that differs from the service, by schemathesis."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from feature_platform.views import FeatureView, bar, catalog
from feature_platform_tests.fix_engine import refresh
from feature_platform_tests.fix_processes import PATIENCE, insert_bars
from feature_platform_tests.fix_service import ServedDatabase

KEY = "a-key-of-the-tests"
# Valid parameters can be rejected: start may not be before end, and a symbol may not be stored.
CONFIGURATION = f"""
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404"]

[auth.openapi.key]
bearer = "{KEY}"
"""


@pytest.fixture(scope="module", autouse=True)
def examples(served: ServedDatabase) -> None:
    """Store rows of the symbol, the day and the view of the description's examples."""
    insert_bars(served.conn, "BTC/USDT", datetime(2026, 2, 1, 12, tzinfo=UTC), 3)
    catalog.apply(served.conn, [FeatureView("momentum_1m", "1 minute", {"x": bar.vol})])
    refresh(served.conn)
    catalog.refresh_views(served.conn)


def test_schemathesis_finds_no_difference(served: ServedDatabase, tmp_path: Path) -> None:
    """The service has a key, so that schemathesis also tries without the key."""
    service, _ = served.serve(api_key=KEY)
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            f"--config-file={configuration}",
            "run",
            f"{service.url}/openapi.json",
            "--phases=examples,coverage,fuzzing",
            "--max-examples=20",
            "--generation-deterministic",
            "--no-color",
            f"--header=Authorization: Bearer {KEY}",  # for the description itself
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # It tested all operations, and received rows.
    assert "Tested: 10" in done.stdout
    assert "Missing test data" not in done.stdout


def test_every_path_rejects_a_parameter_that_it_does_not_have(served: ServedDatabase) -> None:
    paths = served.http.get("/").json()["requests"]
    assert {"/", "/healthz", "/openapi.json", "/v1/features"} <= set(paths)
    for path in paths:
        answer = served.http.get(path, params={"unknown": "1"})
        assert answer.status_code == 422, path
        assert answer.json()["detail"].startswith("no parameter 'unknown'"), path
        assert answer.json()["detail"].count("\n") == 0
