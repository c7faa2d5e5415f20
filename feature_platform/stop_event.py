"""A stop event that is safe to set from a signal handler."""

from __future__ import annotations

import os
import select
import weakref
from contextlib import suppress


class StopEvent:
    """An event that ends all waiting for it, now and later.

    `threading.Event` takes a lock in `wait` and in `set`, both in Python code: a handler that runs
    while its own thread holds that lock waits for ever. This one writes to a pipe, without a lock.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        weakref.finalize(self, _close, self._reader, self._writer)

    def set(self) -> None:
        """End all waiting, now and later; for signal handlers and for any thread."""
        self._is_set = True
        with suppress(BlockingIOError):  # the pipe is full: it has been set many times
            os.write(self._writer, b"!")

    def is_set(self) -> bool:
        """Return whether it has been set."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, for `seconds` at most; return whether it is set."""
        select.select([self._reader], [], [], seconds)
        return self._is_set


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
