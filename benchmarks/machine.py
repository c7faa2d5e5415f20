"""The machine and the server of the measurements."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg

from benchmarks.harness import queries

_SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "work_mem")


def describe(url: str) -> dict[str, Any]:
    """Describe the machine and the server of `url`, and how busy they are now."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            queries["settings"], {"names": ["server_version", *_SETTINGS]}
        ).fetchall()
    settings = {str(name): str(setting) for name, setting in rows}
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": _cores(),
        "processor": _processor(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgresql": settings.pop("server_version"),
        "settings": settings,
        "load_average_at_start": [round(load, 2) for load in psutil.getloadavg()],
    }


def _cores() -> int | None:
    # The cores that this process may use, if the system reports them.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
