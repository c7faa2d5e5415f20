"""Guards against newest rows that are not exact, or silently old or incomplete."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from feature_platform.service.rows import COLUMNS
from feature_platform_tests.fix_service import STRANGE, ServedDatabase

LATEST = "/v1/features/latest"
STORED = """
    SELECT bucket, last_close, vol, log_return, n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap,
           parkinson_vol, refresh_no
    FROM features_1m WHERE symbol = %s ORDER BY bucket DESC LIMIT 1
"""


def rows_of(served: ServedDatabase, *symbols: str) -> list[dict[str, Any]]:
    answer = served.http.get(LATEST, params={"symbol": symbols})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    rows: list[dict[str, Any]] = answer.json()["rows"]
    return rows


@pytest.mark.parametrize("minutes", [1, 10, 1500])
def test_the_newest_row_is_exact_to_the_last_bit(served: ServedDatabase, minutes: int) -> None:
    symbol = f"EXACT{minutes}"
    served.add(symbol, minutes)
    (row,) = rows_of(served, symbol)
    stored = served.conn.execute(STORED, [symbol]).fetchone()
    assert stored is not None
    assert row["symbol"] == symbol
    assert datetime.fromisoformat(row["bucket"]) == stored[0]
    assert row["bucket"].endswith("Z")
    # repr shows -0.0 and the last bit; None is null.
    assert [repr(row[name]) for name in COLUMNS[2:]] == [repr(value) for value in stored[1:]]
    assert (row["log_return"] is None) == (minutes == 1)
    assert (row["volume_z"] is None) == (minutes < 1440)


def test_rows_have_the_order_of_the_requested_symbols(served: ServedDatabase) -> None:
    for symbol in ("B/1", "a", STRANGE):
        served.add(symbol, 3)
    requested = (STRANGE, "a", "B/1", "a")
    assert [row["symbol"] for row in rows_of(served, *requested)] == [STRANGE, "a", "B/1"]


def test_a_row_has_its_age_and_staleness(served: ServedDatabase) -> None:
    served.add("NEW", 3)
    served.add("OLD", 3, minutes_ago=7)
    new, old = rows_of(served, "NEW", "OLD")
    assert 0 <= new["age_seconds"] < 120
    assert 420 <= old["age_seconds"] < 540
    assert (new["stale"], old["stale"]) == (False, True)
    age = (datetime.now(UTC) - datetime.fromisoformat(old["bucket"])).total_seconds() - 60
    assert abs(old["age_seconds"] - age) < 10


def test_the_limit_of_staleness_is_a_setting(served: ServedDatabase) -> None:
    served.add("LIMIT", 3, minutes_ago=7)
    _, http = served.serve(stale_after=3600)
    (row,) = http.get(LATEST, params={"symbol": "LIMIT"}).json()["rows"]
    assert row["stale"] is False


def test_a_symbol_without_features_fails_the_request(served: ServedDatabase) -> None:
    served.add("KNOWN", 3)
    answer = served.http.get(LATEST, params={"symbol": ["KNOWN", "zz", "z'z"]})
    assert answer.status_code == 404
    assert answer.json() == {"detail": "no features of 'zz', \"z'z\""}


def test_values_that_are_not_finite_are_null(served: ServedDatabase) -> None:
    """Values that another writer stored must not break the JSON of readers."""
    served.add("NAN", 3)
    served.conn.execute(
        "UPDATE features_1m SET volume_z = 'NaN', vwap_gap = 'Infinity', vol = '-0',"
        " log_return = 5e-324 WHERE symbol = 'NAN'"
    )
    answer = served.http.get(LATEST, params={"symbol": "NAN"})
    (row,) = answer.json()["rows"]
    assert (row["volume_z"], row["vwap_gap"]) == (None, None)
    assert (repr(row["vol"]), row["log_return"]) == ("-0.0", 5e-324)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "symbol: Field required"),
        ("symbol=", "symbol.0: String should have at least 1 character"),
        ("symbol=a%00b", "symbol.0: String should match pattern"),
        ("symbol=" + "x" * 201, "symbol.0: String should have at most 200 characters"),
        ("symbols=KNOWN", "no parameter 'symbols' (did you mean 'symbol'?); the parameters are"),
        ("symbol=a&x=1", "no parameter 'x'; the parameters are symbol"),
        ("&".join(f"symbol={i}" for i in range(101)), "symbol: List should have at most 100 items"),
    ],
)
def test_a_wrong_parameter_is_named(served: ServedDatabase, query: str, message: str) -> None:
    answer = served.http.get(f"{LATEST}?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(message)


def test_an_unknown_symbol_gets_the_nearest_name(served: ServedDatabase) -> None:
    served.add("NEAR/USDT", 3)
    for symbol in ("NEAR", "near-usdt", "NAER/USDT"):
        answer = served.http.get(LATEST, params={"symbol": symbol})
        assert answer.status_code == 404
        detail = f"no features of {symbol!r} (did you mean 'NEAR/USDT'?)"
        assert answer.json() == {"detail": detail}
        window = {"symbol": symbol, "start": "2026-01-01", "end": "2026-01-02"}
        assert served.http.get("/v1/features", params=window).json() == {"detail": detail}


def test_the_index_lists_every_request(served: ServedDatabase) -> None:
    index = served.http.get("/").json()
    assert set(index["requests"]) == {*served.http.get("/openapi.json").json()["paths"]} | {
        "/openapi.json"
    }
    assert all(index["requests"].values())
    answer = served.http.get("/v1/nothing")
    assert answer.status_code == 404
    assert answer.json() == {"detail": "no such path: / lists the requests"}
