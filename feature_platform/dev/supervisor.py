"""A supervisor of several processes: prefixed logs, restarts, and one Ctrl-C for all.

honcho has the prefixes and the Ctrl-C; this module adds the restarts.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from honcho import manager as honcho
from honcho.printer import Printer
from honcho.process import Popen, Process

# Seconds for processes to stop; Dagster's need some.
_PATIENCE = 20
# Seconds for the children that a process leaves behind when it has ended.
_GRACE = 5.0
# A process that has run for this many seconds is healthy: when it ends, its back-off begins again.
_HEALTHY = 60.0
_LONGEST_PAUSE = 30.0
# Seconds for the servers that a process connects to, which start with it.
_LONGEST_WAIT = 10.0
# The exit status of a mistake that the user has to correct.
_MISTAKE = 2
_PR_SET_PDEATHSIG = 1


class Supervisor(honcho.Manager):  # type: ignore[misc]
    """Run processes until SIGTERM, SIGINT or SIGHUP, which all of them get as SIGTERM.

    A process that ends is restarted with back-off: after 1, 2, 4 ... 30 seconds. If a process ends
    with status 2, a mistake of the user, at its first start, all are stopped. On Linux no process
    outlives the supervisor, even after its kill -9.
    """

    returncode: int | None

    def __init__(self, printer: Printer | None = None) -> None:
        super().__init__(printer)
        honcho.KILL_WAIT = _PATIENCE
        self._process_ctor = _Child
        self._is_stopping = False
        self._stopping_since = 0.0

    def add(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        patience: float = _PATIENCE,
        after: Sequence[tuple[str, int]] = (),
    ) -> None:
        """Add a process, to be started by `run`.

        name: the prefix of its lines.
        patience: seconds for it to stop before it and its children are killed.
        after: addresses that it connects to; it is started when they accept connections, and in
            any case after some seconds.
        """
        # Instead of the shell, so that signals reach it and its status is its own.
        self.add_process(name, f"exec {shlex.join(command)}", env=dict(environment))
        self._processes[name]["obj"].after = after
        self._processes[name]["deaths"] = 0
        self._processes[name]["patience"] = patience

    def run(self) -> int:
        """Run until a signal; return the exit status, 130 after a Ctrl-C."""
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # the terminal was closed
            signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        self.loop()
        return int(self.returncode or 0)

    # honcho's loop calls the following methods. Its own do not restart: they stop all processes
    # when the first one ends.

    def terminate(self) -> None:
        """Let the loop stop everything, once it knows the process ids of all that it started."""
        self._stopping_since = self._stopping_since or time.monotonic()
        self._is_stopping = True

    def _start(self) -> None:
        for state in self._processes.values():
            self._start_one(state)

    def _start_one(self, state: dict[str, Any]) -> None:
        for known in ("pid", "returncode", "again_at"):
            state.pop(known, None)
        child = state["obj"]
        state["began"] = time.monotonic()
        state["process"] = honcho.multiprocessing.Process(
            name=child.name, target=child.run, args=(self.events, True)
        )
        state["process"].start()

    def _any_stopped(self) -> bool:
        for name, state in self._processes.items():
            if "returncode" in state and not self._is_stopping:
                self._restart(name, state)
        if self._is_stopping:
            super().terminate()
        elif self._all_started():
            self.returncode = None  # of a process that is restarted
        return self._is_stopping

    def _all_stopped(self) -> bool:
        if self._is_stopping:
            self._kill_slow_ones()
        return self._is_stopping and bool(super()._all_stopped())

    def _kill_slow_ones(self) -> None:
        """Kill processes that did not stop in their time."""
        waited = time.monotonic() - self._stopping_since
        for name, state in self._processes.items():
            slow = waited > state["patience"] and "returncode" not in state
            if slow and not state.get("killed") and "pid" in state:
                state["killed"] = True
                self._system_print(
                    f"{name} did not stop within {state['patience']:.0f} s: killed\n"
                )
                self._procmgr.kill(state["pid"])

    def _restart(self, name: str, state: dict[str, Any]) -> None:
        if "again_at" in state:
            if time.monotonic() >= state["again_at"]:
                self._start_one(state)
            return
        if state["returncode"] == _MISTAKE and state["deaths"] == 0:
            self._system_print(f"{name} cannot start: stopping everything\n")
            self.returncode = _MISTAKE
            self.terminate()
            return
        if time.monotonic() - state["began"] >= _HEALTHY:
            state["deaths"] = 0
        state["deaths"] += 1
        pause = min(2.0 ** (state["deaths"] - 1), _LONGEST_PAUSE)
        state["again_at"] = time.monotonic() + pause
        self._system_print(f"{name} is started again in {pause:.0f} s\n")


class _Child(Process):  # type: ignore[misc]
    """A process, and honcho's process that reads its output: both end with their parent.

    honcho's process is killed; the other one gets SIGTERM, and stops its own children.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._child_ctor = _popen
        self.after: Sequence[tuple[str, int]] = ()

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        """Run it to its end."""
        _die_with_parent(signal.SIGKILL)
        _wait_for(self.after)
        super().run(events, ignore_signals)


def _wait_for(addresses: Sequence[tuple[str, int]]) -> None:
    """Return when all addresses accept connections, or after some seconds."""
    end = time.monotonic() + _LONGEST_WAIT
    for address in addresses:
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(address, timeout=1):
                break
            time.sleep(0.1)


def _popen(command: str, **options: Any) -> Any:
    child = Popen(command, preexec_fn=_stop_with_parent, stdin=subprocess.DEVNULL, **options)
    threading.Thread(target=_stop_children_left, args=(child,), daemon=True).start()
    return child


def _stop_children_left(child: Any) -> None:
    """Stop the children that a process left behind when it ended: they may hold its ports."""
    child.wait()
    number = signal.SIGTERM
    began = time.monotonic()
    with suppress(ProcessLookupError, PermissionError):  # no process is left
        while True:
            os.killpg(child.pid, number)
            time.sleep(0.1)
            number = signal.SIGKILL if time.monotonic() - began > _GRACE else signal.SIGTERM


def _stop_with_parent() -> None:
    _die_with_parent(signal.SIGTERM)


def _die_with_parent(number: signal.Signals) -> None:
    """Request a signal for the end of the parent, however it ends; only Linux has that."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
