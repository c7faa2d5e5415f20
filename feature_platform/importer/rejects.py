"""The file of the rows that an import rejects."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from feature_platform.bar_rules import BadRow
from feature_platform.errors import UserError

HEADER = ("file", "line", "reason", "text")


class SkipFile:
    """A file of bad rows that has no name until the `with` block ends, and is `path` afterwards.

    So a killed process leaves no file. The file is made only if there are bad rows, and does not
    replace another file.
    Raises UserError where `path` exists or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path}: exists already; give --skip-bad the name of a new file")
        if not path.parent.is_dir():
            raise UserError(f"{path}: the directory {path.parent} does not exist")
        self._path = path
        self._file: TextIO | None = None
        self._kept = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is None:
            return
        self.discard()
        with self._file:
            if self._kept:
                self._publish(self._file)

    def add(self, rows: Iterable[BadRow]) -> None:
        """Write rows; `keep` or `discard` must follow."""
        for row in rows:
            csv.writer(self._open()).writerow((row.file, row.line, row.reason, row.text))

    def keep(self) -> None:
        """Write the rows to the disk, after the good rows of their file were stored."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._kept = self._file.tell()

    def discard(self) -> None:
        """Delete the rows since the last `keep`, because their file was not stored."""
        if self._file is not None:
            self._file.seek(self._kept)
            self._file.truncate()

    def _open(self) -> TextIO:
        if self._file is None:
            try:
                number = _unnamed(self._path.parent)
            except OSError as error:
                raise UserError(f"{self._path}: cannot be written: {error.strerror}") from None
            self._file = open(number, "w+", encoding="utf-8", newline="")  # noqa: PTH123, SIM115
            csv.writer(self._file).writerow(HEADER)
        return self._file

    def _publish(self, file: TextIO) -> None:
        file.flush()
        try:
            _name(file, self._path)
        except FileExistsError:
            other = self._path.parent / f".{self._path.name}.{os.getpid()}.partial"
            _name(file, other)
            raise UserError(
                f"{self._path}: another process has made this file meanwhile; "
                f"the bad rows are in {other}"
            ) from None


def _unnamed(directory: Path) -> int:
    """Open a file without a name in a directory; return its descriptor."""
    with suppress(AttributeError, OSError):  # the system or file system has no O_TMPFILE
        return os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o666)
    with tempfile.TemporaryFile(dir=directory) as file:
        return os.dup(file.fileno())


def _name(file: TextIO, path: Path) -> None:
    """Give a name to a file without one. Raises FileExistsError where the name exists."""
    try:
        # Python follows the link in /proc only if it is given the descriptor of a directory.
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{file.fileno()}", path.name, dst_dir_fd=directory)
        finally:
            os.close(directory)
    except FileExistsError:
        raise
    except OSError:
        with path.open("xb") as copy:
            file.seek(0)
            shutil.copyfileobj(file.buffer, copy)
