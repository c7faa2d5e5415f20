"""Several processes run as one: logs with a prefix, each started again when it ends, one Ctrl-C.

honcho does the first and the last; this adds what a platform needs that is to stay up.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
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

# Seconds that processes have to stop in order: Dagster's take some.
_PATIENCE = 20
# And what a process leaves behind when it has ended.
_GRACE = 5.0
# A process that lived so many seconds was well: when it ends, it is started again soon.
_WELL = 60.0
_LONGEST_PAUSE = 30.0
# How a command says that its user has to mend something first.
_MISTAKE = 2
_PR_SET_PDEATHSIG = 1


class Supervisor(honcho.Manager):  # type: ignore[misc]
    """Run processes until SIGTERM or SIGINT, which all of them get as SIGTERM.

    A process that ends is started again, with back-off: after 1, 2, 4 ... 30 seconds. One whose
    first words are that its user has made a mistake (status 2) ends them all, as they would not
    get far without it. On Linux no process outlives the supervisor, not even its kill -9.
    """

    returncode: int | None

    def __init__(self, printer: Printer | None = None) -> None:
        super().__init__(printer)
        honcho.KILL_WAIT = _PATIENCE
        self._process_ctor = _Child
        self._asked_to_stop = False
        self._asked_at = 0.0

    def add(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        patience: float = _PATIENCE,
    ) -> None:
        """Add a process, to be started by `run`.

        name: the prefix of its lines.
        patience: seconds that it has to stop before it and its children are killed.
        """
        # Instead of the shell, so that signals reach it and its status is its own.
        self.add_process(name, f"exec {shlex.join(command)}", env=dict(environment))
        self._processes[name]["deaths"] = 0
        self._processes[name]["patience"] = patience

    def run(self) -> int:
        """Run until asked to stop; return the exit status, 130 after a Ctrl-C."""
        self.loop()
        return int(self.returncode or 0)

    # honcho's loop calls the following: it knows of no process that comes back, and would end
    # all with the first.

    def terminate(self) -> None:
        """Have the loop stop everything, once it knows the process ids of what it has started."""
        self._asked_at = self._asked_at or time.monotonic()
        self._asked_to_stop = True

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
            if "returncode" in state and not self._asked_to_stop:
                self._bring_back(name, state)
        if self._asked_to_stop:
            super().terminate()
        elif self._all_started():
            self.returncode = None  # of one that comes back
        return self._asked_to_stop

    def _all_stopped(self) -> bool:
        if self._asked_to_stop:
            self._kill_the_slow()
        return self._asked_to_stop and bool(super()._all_stopped())

    def _kill_the_slow(self) -> None:
        """Kill processes whose patience is over."""
        waited = time.monotonic() - self._asked_at
        for name, state in self._processes.items():
            slow = waited > state["patience"] and "returncode" not in state
            if slow and not state.get("killed") and "pid" in state:
                state["killed"] = True
                self._system_print(f"{name} took more than {state['patience']:.0f} s: ended\n")
                self._procmgr.kill(state["pid"])

    def _bring_back(self, name: str, state: dict[str, Any]) -> None:
        if "again_at" in state:
            if time.monotonic() >= state["again_at"]:
                self._start_one(state)
            return
        if state["returncode"] == _MISTAKE and state["deaths"] == 0:
            self._system_print(f"{name} cannot start: stopping everything\n")
            self.returncode = _MISTAKE
            self.terminate()
            return
        if time.monotonic() - state["began"] >= _WELL:
            state["deaths"] = 0
        state["deaths"] += 1
        pause = min(2.0 ** (state["deaths"] - 1), _LONGEST_PAUSE)
        state["again_at"] = time.monotonic() + pause
        self._system_print(f"{name} is started again in {pause:.0f} s\n")


class _Child(Process):  # type: ignore[misc]
    """A process of honcho's, and the small one that reads what it says: both go with their parent.

    The outer one is killed; the process itself is asked to stop, and stops its own children.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._child_ctor = _popen

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        """Run it to its end."""
        _die_with_parent(signal.SIGKILL)
        super().run(events, ignore_signals)


def _popen(command: str, **options: Any) -> Any:
    child = Popen(command, preexec_fn=_be_asked_to_stop, stdin=subprocess.DEVNULL, **options)
    threading.Thread(target=_stop_what_it_leaves, args=(child,), daemon=True).start()
    return child


def _stop_what_it_leaves(child: Any) -> None:
    """Stop what a process has started and left behind when it ended: its ports are needed."""
    child.wait()
    number = signal.SIGTERM
    began = time.monotonic()
    with suppress(ProcessLookupError, PermissionError):  # there is nothing left
        while True:
            os.killpg(child.pid, number)
            time.sleep(0.1)
            number = signal.SIGKILL if time.monotonic() - began > _GRACE else signal.SIGTERM


def _be_asked_to_stop() -> None:
    _die_with_parent(signal.SIGTERM)


def _die_with_parent(number: signal.Signals) -> None:
    """Get a signal when the parent ends, however it ends; only Linux has that."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
