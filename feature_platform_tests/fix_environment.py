"""Tests that neither read nor change the settings and the data of the user who runs them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import psutil
import pytest

from feature_platform.settings import get_settings

_MEMORY = Path("/dev/shm")
_ENOUGH = 4 << 30  # bytes; the databases of one worker take some hundred megabytes


@cache
def fast_directory() -> Path:
    """Return the directory for the homes of embedded servers: one in memory, if that is possible.

    A copy of a database can take fifteen times as much processor time on a disk.
    """
    usual = Path(tempfile.gettempdir())
    if not os.access(_MEMORY, os.R_OK | os.W_OK | os.X_OK):
        return usual
    found = os.statvfs(_MEMORY)
    free = min(found.f_bavail * found.f_frsize, psutil.virtual_memory().available)
    # Some tests copy PostgreSQL's programs into a home.
    return _MEMORY if free >= _ENOUGH and not found.f_flag & os.ST_NOEXEC else usual


@contextmanager
def passable_directory() -> Iterator[Path]:
    """Make a temporary directory that other users can pass through, and remove it afterwards.

    It is for the homes of embedded servers. pytest sets its own directories to 0700 whenever a
    session begins, and the system user of a server could not reach its data from then on.
    """
    made = Path(tempfile.mkdtemp(prefix="fp-", dir=fast_directory()))
    made.chmod(0o711)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def homes() -> Iterator[Path]:
    """Yield the directory of the tests' homes."""
    with passable_directory() as made:
        yield made


_numbers = count()


@pytest.fixture
def own_home(homes: Path) -> Path:
    """Return the home that the settings of this test name; it does not exist yet."""
    return homes / f"{next(_numbers)}"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> Iterator[None]:
    """Unset every setting but the home."""
    for name in tuple(os.environ):
        ours = name.startswith("FEATURE_PLATFORM_") and not name.startswith(
            "FEATURE_PLATFORM_TEST_"
        )
        if ours or name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", str(own_home))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
