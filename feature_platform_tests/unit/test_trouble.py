"""Guards against a lasting error that fills the log, and a full disk that is not named."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

import psycopg
import pytest

from feature_platform.errors import UserError
from feature_platform.settings import get_settings
from feature_platform.trouble_log import REPEAT_SECONDS, Repeats, TroubleLog, is_disk_full

FULL = psycopg.errors.DiskFull('could not extend file "base/5/16384": No space left on device')


def test_a_repeated_error_is_logged_every_thirty_seconds_with_a_count() -> None:
    now = 0.0
    repeats = Repeats(lambda: now)
    shown = []
    for _ in range(1200):  # two minutes
        shown.append(repeats.take("full", "full"))
        now += 0.1
    texts = [text for text in shown if text is not None]
    assert len(texts) == 4
    assert texts[0] == "full"
    assert texts[1].startswith("full (3")
    assert texts[1].endswith(f" times in {REPEAT_SECONDS:.0f} s)")
    now += REPEAT_SECONDS
    assert repeats.take("other", "other") == "other"


def test_each_of_the_first_attempts_is_logged() -> None:
    repeats = Repeats(lambda: 0.0)
    assert [repeats.take("away", "away", 3) for _ in range(5)] == ["away"] * 3 + [None] * 2


def test_the_number_of_stored_errors_is_bounded() -> None:
    repeats = Repeats(lambda: 0.0)
    for number in range(5000):
        repeats.take(str(number), "x")
    assert len(repeats._passed) <= 1000


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (psycopg.OperationalError("FATAL: could not write: No space left on device"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (psycopg.OperationalError("connection refused"), False),
    ],
)
def test_a_full_disk_is_recognised(error: Exception, full: bool) -> None:
    assert is_disk_full(error) is full


def test_a_full_disk_gets_one_line(caplog: pytest.LogCaptureFixture) -> None:
    trouble = TroubleLog(logging.getLogger("feature_platform.test"))
    for _ in range(100):
        trouble.warn(FULL, "the database is unavailable", ", 3 bars are in memory")
    (line,) = caplog.messages
    assert line.startswith("the disk is full, 3 bars are in memory: could not extend file")


def test_a_lost_server_on_a_full_disk_is_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The embedded server removes the WAL file that it could not write, and ends."""
    monkeypatch.delenv("FEATURE_PLATFORM_DATABASE_URL", raising=False)
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", str(tmp_path))
    get_settings.cache_clear()
    lost = psycopg.OperationalError("the connection is lost")
    for error in (lost, UserError("cannot connect to the database")):
        assert not is_disk_full(error)
        with monkeypatch.context() as patch:
            usage = shutil.disk_usage(tmp_path)._replace(free=16 << 20)
            patch.setattr(shutil, "disk_usage", lambda _path, usage=usage: usage)
            assert is_disk_full(error)
