"""Guards against a wait that does not end when a signal handler or a thread sets its event."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from feature_platform.stop_event import StopEvent
from feature_platform_tests.fix_processes import PATIENCE, wait_until


def test_a_wait_without_an_event_lasts_its_timeout() -> None:
    event = StopEvent()
    began = time.monotonic()
    assert not event.wait(0.05)
    assert time.monotonic() - began >= 0.05
    assert not event.wait(0)


def test_every_wait_after_the_event_returns_at_once() -> None:
    event = StopEvent()
    for _ in range(100_000):  # more bytes than fit into a pipe
        event.set()
    assert event.is_set()
    began = time.monotonic()
    assert all(event.wait(PATIENCE) for _ in range(3))
    assert time.monotonic() - began < PATIENCE


def test_another_thread_can_set_the_event() -> None:
    event = StopEvent()
    thread = threading.Thread(target=event.set)
    thread.start()
    assert event.wait(PATIENCE)
    thread.join()


def test_an_unused_event_closes_its_descriptors() -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("this system has no /proc")
    before = len(list(folder.iterdir()))
    for _ in range(10):
        StopEvent().wait(0)
    assert len(list(folder.iterdir())) == before


STORM = """
import signal
from feature_platform.stop_event import StopEvent

events = [StopEvent()]
signal.signal(signal.SIGALRM, lambda *_: events[-1].set())
for number in range(5000):
    events[:] = [StopEvent()]
    signal.setitimer(signal.ITIMER_REAL, 1e-6 + number % 500 * 1e-7)
    while not events[-1].wait(1e-5):
        pass
print("over")
"""


def test_a_signal_at_any_moment_of_a_wait_ends_it() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STORM],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.stderr) == ("over\n", "")


PAUSED = """
import signal
from feature_platform.stop_event import StopEvent

event = StopEvent()
signal.signal(signal.SIGTERM, lambda *_: event.set())
print("waiting", flush=True)
print(event.wait(0.2), flush=True)
"""


def test_a_wait_ends_in_a_process_that_was_suspended_beyond_its_timeout() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGSTOP)
        status = psutil.Process(process.pid).status
        wait_until(lambda: status() == psutil.STATUS_STOPPED, "the process is suspended")
        time.sleep(0.3)  # longer than the timeout of the wait
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=PATIENCE)[0] == "False\n"
