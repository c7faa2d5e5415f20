"""A file for bars that wait for the database: batches are appended, flushed and read in order."""

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
    """A file of batches of bars that a killed process leaves intact.

    path: the file; a missing directory is created. One process at a time uses it.
    A batch is a line: the CRC-32 of its JSON, and the JSON. An incomplete last line, of a writer
    that was killed or a disk that was full, belongs to an `append` that did not return, and is cut
    off. Any other line that cannot be read is logged and skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bars = 0
        """The number of bars in the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = 0
        self._recover()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def append(self, bars: Sequence[StreamBar]) -> None:
        """Append a batch; it is on the disk when this returns.

        Raises OSError where that fails, as on a full disk; earlier batches stay in the file.
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
        """Yield the batches, the oldest first."""
        with os.fdopen(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            while lines.tell() < self._end:
                bars = _bars_of(lines.readline())
                if bars is not None:
                    yield bars

    def clear(self) -> None:
        """Remove all batches, after they were stored in the database."""
        self._end = self.bars = 0
        self._cut()

    def _cut(self) -> None:
        os.ftruncate(self._file, self._end)
        os.fsync(self._file)

    def _recover(self) -> None:
        """Find the end of the last complete line, and count the bars."""
        with os.fdopen(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            for line in lines:
                bars = _bars_of(line)
                complete = line.endswith(b"\n")
                if complete:
                    self._end += len(line)
                if bars is not None:
                    self.bars += len(bars)
                elif complete:
                    _log.error(
                        "%s has a line that cannot be read, of %d bytes", self.path, len(line)
                    )
        self._cut()


def _line_of(bars: Sequence[StreamBar]) -> bytes:
    text = json.dumps(bars, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _bars_of(line: bytes) -> list[StreamBar] | None:
    """Return the bars of a line, None where it is incomplete or damaged."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    return [StreamBar(*fields) for fields in json.loads(text)]


def _write(file: int, data: bytes, at: int) -> None:
    """Write all of the data: one call of `pwrite` may write less."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written
