"""Keep the tests apart from the settings and the data of who runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_platform.settings import get_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Unset every setting, but for a home that is the test's own."""
    for name in tuple(os.environ):
        ours = name.startswith("FEATURE_PLATFORM_") and not name.startswith(
            "FEATURE_PLATFORM_TEST_"
        )
        if ours or name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
