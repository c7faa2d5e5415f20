"""Waiting ends when a signal handler says so, at whatever moment the signal comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from feature_platform.stop_event import Bell
from feature_platform_tests.fix_processes import PATIENCE, wait_until


def test_it_waits_as_long_as_it_is_told() -> None:
    bell = Bell()
    began = time.monotonic()
    assert not bell.wait(0.05)
    assert time.monotonic() - began >= 0.05
    assert not bell.wait(0)


def test_once_rung_nobody_waits_again() -> None:
    bell = Bell()
    for _ in range(100_000):  # more than a pipe holds
        bell.ring()
    assert bell.rung
    began = time.monotonic()
    assert all(bell.wait(PATIENCE) for _ in range(3))
    assert time.monotonic() - began < PATIENCE


def test_another_thread_may_ring_it() -> None:
    bell = Bell()
    thread = threading.Thread(target=bell.ring)
    thread.start()
    assert bell.wait(PATIENCE)
    thread.join()


def test_it_leaves_no_descriptors_behind() -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("this system has no /proc to look into")
    before = len(list(folder.iterdir()))
    for _ in range(10):
        Bell().wait(0)
    assert len(list(folder.iterdir())) == before


STORM = """
import signal
import time
from feature_platform.stop_event import Bell

bells = [Bell()]
signal.signal(signal.SIGALRM, lambda *_: bells[-1].ring())
until = time.monotonic() + 2
rung = 0
while time.monotonic() < until:
    bells[:] = [Bell()]
    signal.setitimer(signal.ITIMER_REAL, 1e-6 + rung % 500 * 1e-7)
    while not bells[-1].wait(1e-5):
        pass
    rung += 1
print("over", rung > 100)
"""


def test_no_moment_is_wrong_for_a_signal() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STORM],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.stderr) == ("over True\n", "")


PAUSED = """
import signal
from feature_platform.stop_event import Bell

bell = Bell()
signal.signal(signal.SIGTERM, lambda *_: bell.ring())
print("waiting", flush=True)
print(bell.wait(0.2), flush=True)
"""


def test_a_process_that_was_stopped_and_continued_does_not_wait_for_ever() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 0.4, "longer than it waits")
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=PATIENCE)[0] == "False\n"
