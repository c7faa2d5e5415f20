"""A wish to stop, which a signal handler may utter while its very own thread waits for it."""

from __future__ import annotations

import os
import select
import weakref
from contextlib import suppress


class Bell:
    """Wake whoever waits, once and for all.

    A `threading.Event` takes a lock in `wait` and in `set`, both in Python code: a handler that
    runs between the two waits for ever for what its own thread holds. A pipe has no such moment.
    """

    def __init__(self) -> None:
        self.rung = False
        self._ear, self._cord = os.pipe()
        os.set_blocking(self._cord, False)
        weakref.finalize(self, _close, self._ear, self._cord)

    def ring(self) -> None:
        """End all waiting, now and later; for signal handlers and for any thread."""
        self.rung = True
        with suppress(BlockingIOError):  # it has been rung a lot
            os.write(self._cord, b"!")

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is rung; return whether it was."""
        select.select([self._ear], [], [], seconds)
        return self.rung


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
