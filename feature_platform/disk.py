"""The free space of a disk, as far as PostgreSQL needs it."""

from __future__ import annotations

import shutil
from pathlib import Path

DISK_FULL = "the disk is full"
# The system's text of this error, also in the server's messages.
NO_SPACE = "No space left on device"

# Bytes. A server that has no place for a new WAL file, of 16 MB, removes what it wrote of it.
_LEAST_FREE = 17 << 20


def is_full(path: Path) -> bool:
    """Return whether a server with its data at `path` cannot write; False where it is unknown."""
    try:
        return shutil.disk_usage(path).free < _LEAST_FREE
    except OSError:
        return False
