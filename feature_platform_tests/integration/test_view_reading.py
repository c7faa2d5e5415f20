"""Guards against rows of feature views that readers get late, wrong or not at all."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pyarrow.ipc
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from feature_platform import latest, read_features
from feature_platform.errors import UserError
from feature_platform.settings import get_settings
from feature_platform.verify import verify
from feature_platform.views import catalog
from feature_platform_tests.fix_processes import run_on
from feature_platform_tests.fix_service import ServedDatabase
from feature_platform_tests.fix_views import CANDLES, SHORT, ago, refresh_all

EXAMPLES = Path(__file__).parents[2] / "examples" / "features.py"
START = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def applied(served: ServedDatabase) -> ServedDatabase:
    """Return a service with two views."""
    served.add("A/B", 200)
    served.add("old", 200, minutes_ago=10)
    catalog.apply(served.conn, [SHORT, CANDLES])
    refresh_all(served.conn)
    return served


def test_the_service_has_every_view(applied: ServedDatabase) -> None:
    http = applied.http
    candles, short = http.get("/v1/views").json()["views"]
    assert (candles["name"], candles["every_seconds"]) == ("candles_1h", 3600)
    assert short["columns"][0] == {
        "name": "mean_5m",
        "expression": 'mean(bar.vol, "5 minutes")',
    }
    answer = http.get("/v1/views/short_1m/latest", params={"symbol": ["A/B", "old"]})
    rows = answer.json()["rows"]
    stored = applied.conn.execute(
        "SELECT mean_5m, ema_3m FROM short_1m WHERE symbol = 'A/B' ORDER BY bucket DESC LIMIT 1"
    ).fetchone()
    assert (rows[0]["mean_5m"], rows[0]["ema_3m"]) == stored
    assert [row["stale"] for row in rows] == [False, True]


def test_the_service_gives_the_rows_of_a_view_page_by_page(applied: ServedDatabase) -> None:
    http = applied.http
    window = {"symbol": "A/B", "start": "2020-01-01", "end": "2020-12-31"}
    page = http.get("/v1/views/short_1m", params=window).json()
    assert (page["rows"], page["next"]) == ([], None)
    newest = ago(0)
    window = {
        "symbol": "A/B",
        "start": (newest - timedelta(days=1)).isoformat(),
        "end": newest.isoformat(),
        "limit": "150",
    }
    page = http.get("/v1/views/short_1m", params=window)
    assert len(page.json()["rows"]) == 150
    rest = http.get(page.json()["next"]).json()
    assert (len(rest["rows"]), rest["next"]) == (50, None)
    as_csv = http.get("/v1/views/short_1m", params={**window, "format": "csv"})
    lines = list(csv.DictReader(io.StringIO(as_csv.text)))
    assert list(lines[0]) == ["symbol", "bucket", *SHORT.columns, "refresh_no"]
    arrow = http.get("/v1/views/short_1m", params={**window, "format": "arrow"})
    table = pyarrow.ipc.open_stream(arrow.content).read_all()
    assert table.column_names == ["symbol", "bucket", *SHORT.columns, "refresh_no"]
    assert table["mean_5m"].to_pylist() == [row["mean_5m"] for row in page.json()["rows"]]


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/v1/views/shortt_1m/latest?symbol=old", "no view 'shortt_1m'; did you mean 'short_1m'?"),
        ("/v1/views/short_1m/latest?symbol=none", "no rows in short_1m of 'none'"),
        ("/v1/views/short_1m?symbol=none&start=2026-01-01&end=2026-01-02", "no rows in short_1m"),
    ],
)
def test_an_unknown_view_or_symbol_is_an_error(
    applied: ServedDatabase, path: str, complaint: str
) -> None:
    answer = applied.http.get(path)
    assert answer.status_code == 404
    assert complaint.split(";")[0] in answer.json()["detail"]


def test_metrics_have_every_view(applied: ServedDatabase) -> None:
    text = applied.serve()[1].get("/metrics").text
    assert 'feature_platform_view_dirty_buckets{view="short_1m"} 0.0' in text
    assert 'feature_platform_view_built_ratio{view="candles_1h"} 1.0' in text
    assert 'feature_platform_view_failed{view="candles_1h"} 0.0' in text
    assert 'feature_platform_view_lag_seconds{view="short_1m"}' in text


def test_a_reader_reads_views_and_verifies_them(
    applied: ServedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_reader = make_conninfo(applied.url, options="-c role=feature_platform_reader")
    settings = get_settings().model_copy(update={"database_url": SecretStr(as_reader)})
    monkeypatch.setattr("feature_platform.database.get_settings", lambda: settings)
    frame = read_features("A/B", "2026-01-01T00:00Z", ago(0), view="short_1m")
    assert list(frame.columns) == list(SHORT.columns)
    assert len(frame) == 200
    both = read_features(
        ["A/B", "old"],
        "2026-01-01T00:00Z",
        ago(0),
        ["volume_z", "ema_3m", "close"],
        view=["features_1m", "short_1m", "candles_1h"],
    )
    assert list(both.columns) == ["volume_z", "ema_3m", "close"]
    assert both.index.is_monotonic_increasing
    assert both["close"].notna().sum() >= 4
    with pytest.raises(UserError, match="there is no feature view 'shrt_1m'"):
        read_features("A/B", "2026-01-01T00:00Z", ago(0), view="shrt_1m")
    with pytest.raises(UserError, match="has no column 'mean_6m'"):
        read_features("A/B", "2026-01-01T00:00Z", ago(0), ["mean_6m"], view="short_1m")
    newest = latest(view="short_1m")
    assert list(newest.index) == ["A/B", "old"]
    assert list(newest.columns) == ["bucket", *SHORT.columns]
    assert newest.loc["A/B"].drop("bucket").equals(frame.iloc[-1].rename("A/B").astype(object))
    assert newest.loc["A/B", "bucket"] == frame.index[-1]
    hours = latest(["A/B"], ["close", "n"], as_="arrow", view="candles_1h")
    assert hours.column_names == ["symbol", "bucket", "close", "n"]
    assert hours.num_rows == 1
    with pytest.raises(UserError, match="there is no feature view 'shrt_1m'"):
        latest(view="shrt_1m")
    with pytest.raises(UserError, match="short_1m has no column 'mean_6m'"):
        latest("A/B", ["mean_6m"], view="short_1m")
    with pytest.raises(UserError, match="no rows in short_1m of 'A/C'"):
        latest("A/C", view="short_1m")
    with pytest.raises(UserError, match="latest reads one view"):
        latest("A/B", view=["short_1m", "candles_1h"])  # type: ignore[call-overload]
    with psycopg.connect(as_reader, autocommit=True) as reader:
        report = verify(reader)
        assert (report.views, report.mismatches, report.pending) == (2, 0, 0)
        with pytest.raises(UserError, match="only the schema's owner"):
            catalog.apply(reader, [SHORT])


def test_the_commands_go_from_bars_to_verified_views(database: str, tmp_path: Path) -> None:
    bars = tmp_path / "bars.csv"
    rows = [
        f"{START + timedelta(minutes=m):%FT%TZ},10,12,9,{10 + m % 3},{m % 7}" for m in range(400)
    ]
    bars.write_text("\n".join(["ts,open,high,low,close,vol", *rows]))
    run_on(database, "import", str(bars), "--symbol", "LINK/USDT")
    plan = run_on(database, "views", "plan", str(EXAMPLES)).stdout
    assert "momentum_1m: new, version 1, 9 columns" in plan
    assert "ms for a new bucket of 1 symbol, measured on a sample" in plan
    assert run_on(database, "views", "list").stdout.startswith("no feature views yet")
    applied = run_on(database, "views", "apply", str(EXAMPLES)).stdout
    assert "no worker is running, so the history was built now" in applied
    listed = run_on(database, "views", "list").stdout
    assert all(name in listed for name in ("momentum_1m", "weekly_1m", "candles_1d", "100 %"))
    again = run_on(database, "views", "apply", str(EXAMPLES)).stdout
    assert "momentum_1m: unchanged, version 1" in again
    shown = run_on(database, "views", "show", "candles_1h").stdout
    assert "candles_1h version 1, every 1 h" in shown
    assert "all equal" in run_on(database, "verify").stdout
    assert run_on(database, "views", "drop", "weekly_1m", "--yes").stdout == "dropped: weekly_1m\n"
    assert "weekly_1m" not in run_on(database, "views", "list").stdout
