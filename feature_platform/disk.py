"""Whether a disk is full, so that PostgreSQL cannot write."""

from __future__ import annotations

import shutil
from pathlib import Path

DISK_FULL = "the disk is full"
# The system's text of this error, also in the server's messages.
NO_SPACE = "No space left on device"

# The least free space that a server needs, in bytes. Without space for a new WAL file (16 MB) it
# removes the part that it has written.
_LEAST_FREE = 17 << 20


def is_full(path: Path) -> bool:
    """Return whether a server with its data at `path` cannot write; False where it is unknown."""
    try:
        return shutil.disk_usage(path).free < _LEAST_FREE
    except OSError:
        return False
