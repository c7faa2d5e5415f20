"""Dagster's log for a terminal: one line a record, no record twice, no traceback."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from typing import Any

from feature_platform.disk import DISK_FULL, NO_SPACE
from feature_platform.trouble_log import Repeats

# The format of `logging` without a configuration: once any library has logged to the root logger,
# Dagster's processes write each record a second time in this form.
_BARE = re.compile(r"(?P<level>[A-Z]+):(?P<logger>[\w.-]+):(?P<text>.*)")
# Lines that follow the first line of a database's error.
_BACKGROUND = ("(Background on this error at: ", "DETAIL:", "HINT:")
_TRACE = re.compile(r"Stack Trace:|Traceback \(most recent call last\):")
# A wrong warning about the project's dagster.yaml: `prepare_instance` has copied it to its place.
_WRONG_WARNING = "Found a dagster instance configuration value (dagster.yaml) in the current folder"
# Records of a tick without contents: its result is in another record.
_EMPTY = ("Checking for new runs for ", "Instance is configured with the following daemons: ")
# Dagster writes "skipped" for each tick that starts no run; the text states what the tick did.
_TICK = re.compile(r"Sensor (?P<sensor>\w+) skipped: (?P<text>.*)", re.DOTALL)
_REPEATED_LINES = 200
_CAUSE = "The above exception was caused by the following exception:"


class DagsterLog:
    """Shorten the lines of `dagster dev --log-format json`.

    The output of `feature-platform -v dev` has all lines.
    disk_is_full: whether the disk of the embedded server is full: then each line of trouble counts
        as a report of that, since a server that cannot write ends without a reason to its clients.
    """

    def __init__(self, disk_is_full: Callable[[], bool] = lambda: False) -> None:
        self._disk_is_full = disk_is_full
        self._repeats = Repeats()
        self._seen: deque[str] = deque(maxlen=_REPEATED_LINES)
        self._in_trace = False
        self._after_bare = False

    def show(self, line: str) -> str | None:
        """Return the text to show for a line, None to hide it."""
        line = line.rstrip()
        if line.startswith("{"):
            try:
                record = json.loads(line)
            except ValueError:
                return line
            self._in_trace = self._after_bare = False
            return self._show_record(record)
        if (bare := _BARE.fullmatch(line)) is not None:
            self._in_trace, self._after_bare = False, True
            if bare["logger"] != "root":
                return None
            return self._show_trouble(bare["level"], bare["text"])
        return self._show_bare_line(line)

    def _show_record(self, record: dict[str, Any]) -> str | None:
        event, level = str(record.get("event", "")), str(record.get("level", "")).upper()
        self._seen.extend(part.rstrip() for part in event.splitlines())
        if event.startswith((_WRONG_WARNING, *_EMPTY)):
            return None
        if (tick := _TICK.fullmatch(event)) is not None:
            event = f"{tick['sensor']}: {tick['text']}"
        before_trace = _TRACE.split(event, maxsplit=1)[0]
        parts = [part.strip() for part in before_trace.splitlines() if part.strip()][:2]
        cause = record.get("exc_info")
        if isinstance(cause, list) and len(cause) > 1:
            parts.append(_without_trace(str(cause[1])))
        text = ": ".join(part.rstrip(":") for part in parts)
        return text if level in ("INFO", "DEBUG") else self._show_trouble(level, text)

    def _show_trouble(self, level: str, text: str) -> str | None:
        shown = f"{level} {text}"
        # Each process and sensor has another text for it.
        if DISK_FULL in text or NO_SPACE in text or self._disk_is_full():
            return self._repeats.take(DISK_FULL, f"{level} {DISK_FULL}: {text}")
        return self._repeats.take(shown, shown)

    def _show_bare_line(self, line: str) -> str | None:
        if not line or line.startswith(_BACKGROUND) or self._disk_is_full():
            return None
        if _TRACE.match(line.strip()):
            self._in_trace = True
            return None
        if line[0].isspace():
            return None if self._in_trace or self._after_bare else line
        if self._in_trace:  # the exception after its traceback
            self._in_trace = False
            return None if self._after_bare else self._repeats.take(line, line)
        if self._after_bare and line in self._seen:
            return None
        self._after_bare = False
        return line


def _without_trace(exception: str) -> str:
    """Return the first line of an exception's text, and that of the exception that caused it."""
    lines = exception.replace("\\n", "\n")
    first, *traces = _TRACE.split(lines)
    if not traces:
        return exception
    found = [first.strip()]
    causes = lines.split(_CAUSE)[1:]
    if causes:
        found.append(causes[-1].strip().splitlines()[0])
    return ": caused by ".join(found)
