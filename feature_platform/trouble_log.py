"""A log of lasting errors: a few times at first, then every 30 seconds with a count."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from feature_platform.disk import DISK_FULL, NO_SPACE, is_full
from feature_platform.errors import UserError, one_line
from feature_platform.settings import get_settings

REPEAT_SECONDS = 30.0

_AT_FIRST = 5  # lines, for the first attempts of a back-off
_MOST_KINDS = 1000  # of errors that are remembered


class Repeats:
    """A filter of repeated messages: a few times each, then every 30 seconds with a count.

    clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._passed: dict[str, _Passed] = {}

    def take(self, kind: str, text: str, at_first: int = 1) -> str | None:
        """Return the text to show now, None if this kind was shown a short while ago.

        at_first: the number of times that it is shown before the pause of 30 seconds.
        """
        now = self._clock()
        last = self._passed.pop(kind, None)
        if last is None or now - last.at >= REPEAT_SECONDS:
            self._passed[kind] = _Passed(now)
            if len(self._passed) > _MOST_KINDS:
                del self._passed[next(iter(self._passed))]
            if last is None or not last.held:
                return text
            return f"{text} ({last.held + 1} times in {now - last.at:.0f} s)"
        self._passed[kind] = last
        last.times += 1
        if last.times <= at_first:
            return text
        last.held += 1
        return None


@dataclass
class _Passed:
    """A kind of message: when it was shown, how often since, and how often it was hidden."""

    at: float
    times: int = 1
    held: int = 0


class TroubleLog:
    """A log of errors: a full disk once, other kinds a few times, then every 30 seconds."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._repeats = Repeats()

    def warn(self, error: BaseException, kind: str, detail: str = "") -> bool:
        """Log an error of a kind, such as "the database failed"; a full disk is its own kind.

        detail: the present state, such as the number of bars in memory.
        Return whether the disk is full.
        """
        reason = one_line(error)
        full = is_disk_full(error)
        kind = DISK_FULL if full else kind
        text = self._repeats.take(kind, f"{kind}{detail}: {reason}", 1 if full else _AT_FIRST)
        if text is not None:
            self._logger.warning("%s", text)
        return full


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error comes from a full disk, the server's or this machine's.

    A server that cannot write its WAL ends, and its clients only get a lost connection. For the
    embedded server, the free space of the disk decides.
    """
    if isinstance(error, psycopg.errors.DiskFull) or NO_SPACE in str(error):
        return True
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    settings = get_settings()
    if settings.database_url is not None:
        return False
    return isinstance(error, psycopg.OperationalError | UserError) and is_full(settings.home)
