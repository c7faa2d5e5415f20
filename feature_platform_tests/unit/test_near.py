"""Guards against unknown names without a hint, and against a slow search for the nearest."""

from __future__ import annotations

import time

import pytest

from feature_platform.near_names import near_names

KNOWN = ["BTC/USDT", "ETH/USDT", "LINK/USDT", "volume_z"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("btc", " (did you mean 'BTC/USDT'?)"),
        ("ETHUSDT", " (did you mean 'ETH/USDT'?)"),
        ("LIKN-USDT", " (did you mean 'LINK/USDT'?)"),
        ("volumez", " (did you mean 'volume_z'?)"),
        ("usdt", " (did you mean 'BTC/USDT' or 'ETH/USDT' or 'LINK/USDT'?)"),
        ("nothing alike", ""),
        ("x" * 200, ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_suggested(name: str, hint: str) -> None:
    assert near_names(name, KNOWN) == hint
    assert near_names(name, []) == ""


def test_the_nearest_of_many_names_is_found_fast() -> None:
    known = [f"S{number:06d}/USDT" for number in range(100_000)]
    began = time.process_time()
    near_names("S12X456/USDT", known)
    assert time.process_time() - began < 2
