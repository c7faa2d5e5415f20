"""Guards against wrong settings of the exchange that are accepted."""

from __future__ import annotations

import pytest

from feature_platform.errors import UserError
from feature_platform.settings import get_settings


def test_the_defaults_are_binance_and_its_symbols() -> None:
    settings = get_settings()
    assert settings.exchange == "binance"
    assert "BTC/USDT" in settings.symbols
    assert settings.exchange_url is None


def test_symbols_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", " LINK/USDT, XRP/ETH,,LINK/USDT ")
    assert get_settings().symbols == ("LINK/USDT", "XRP/ETH")


def test_an_empty_list_of_symbols_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", " , ")
    with pytest.raises(UserError, match=r"^FEATURE_PLATFORM_SYMBOLS: no symbol; "):
        get_settings()


@pytest.mark.parametrize(
    "url",
    [
        "https://proxy.example/binance",
        "http://127.0.0.1:8090",
        "http://[::1]:1",
        "http://localhost",
    ],
)
def test_a_valid_exchange_url_is_accepted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_EXCHANGE_URL", url)
    assert get_settings().exchange_url == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("proxy.example", "not an http or https URL"),
        ("ftp://proxy.example", "not an http or https URL"),
        ("https://", "not an http or https URL"),
        ("https://proxy.example:port", "not a URL"),
        ("http://proxy.example", "plain http is for this machine only"),
        ("http://10.0.0.1", "plain http is for this machine only"),
        ("https://me:s3cr3t@proxy.example", "a user, password, query or fragment"),
        ("https://proxy.example/?key=s3cr3t", "a user, password, query or fragment"),
    ],
)
def test_a_bad_exchange_url_is_named(
    url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_EXCHANGE_URL", url)
    with pytest.raises(UserError, match=f"^FEATURE_PLATFORM_EXCHANGE_URL: {reason}") as caught:
        get_settings()
    assert "s3cr3t" not in str(caught.value)
