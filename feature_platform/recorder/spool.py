"""Bars on disk while the database is away: appended, flushed to the disk, and read in order."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from feature_platform.bars import StreamBar

_log = logging.getLogger(__name__)


class Spool:
    """Keep batches of bars in a file that outlives this process, however it ends.

    path: the file; its directory is made where it is not there. One process at a time uses it.
    A batch is a line: the CRC-32 of what follows, and JSON. A last line that is torn, because its
    writer was killed or the disk was full, was never promised to be kept, and is cut off; any
    other line that cannot be read is passed over and told of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bars = 0
        """How many bars it holds."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = 0
        self._recover()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def append(self, bars: Sequence[StreamBar]) -> None:
        """Keep a batch; when this returns, it is on the disk.

        Raises OSError where it cannot be kept, a full disk for one; what was kept before stays.
        """
        try:
            _write(self._file, _line_of(bars), self._end)
            os.fsync(self._file)
        except OSError:
            self._cut()
            raise
        self._end = os.lseek(self._file, 0, os.SEEK_END)
        self.bars += len(bars)

    def batches(self) -> Iterator[list[StreamBar]]:
        """Yield what is kept, the oldest batch first."""
        with os.fdopen(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            while lines.tell() < self._end:
                bars = _bars_of(lines.readline())
                if bars is not None:
                    yield bars

    def clear(self) -> None:
        """Forget all that is kept: it has been stored elsewhere."""
        self._end = self.bars = 0
        self._cut()

    def _cut(self) -> None:
        os.ftruncate(self._file, self._end)
        os.fsync(self._file)

    def _recover(self) -> None:
        """Find the end of what was kept, and count it."""
        with os.fdopen(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            for line in lines:
                bars = _bars_of(line)
                whole = line.endswith(b"\n")
                if whole:
                    self._end += len(line)
                if bars is not None:
                    self.bars += len(bars)
                elif whole:
                    _log.error(
                        "%s has a line that cannot be read, of %d bytes", self.path, len(line)
                    )
        self._cut()


def _line_of(bars: Sequence[StreamBar]) -> bytes:
    text = json.dumps(bars, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _bars_of(line: bytes) -> list[StreamBar] | None:
    """Return the bars of a line, None where it is torn or damaged."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    return [StreamBar(*fields) for fields in json.loads(text)]


def _write(file: int, data: bytes, at: int) -> None:
    """Write all of it, which a single call need not."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written
