"""The file of the rows that an import rejected."""

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
    """Collect rows in a file without a name, which gets `path` when the block is left.

    A killed process leaves no file behind. The file appears only if a row was kept, and never in
    place of another file.
    Raises UserError where `path` exists, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path}: exists already, and bad rows of another import may be in it")
        if not path.parent.is_dir():
            raise UserError(f"{path}: there is no directory {path.parent}")
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
        """Write rows, to be kept or discarded."""
        for row in rows:
            csv.writer(self._open()).writerow((row.file, row.line, row.reason, row.text))

    def keep(self) -> None:
        """Write the rows so far to the disk: they will not be in the database."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._kept = self._file.tell()

    def discard(self) -> None:
        """Delete the rows since the last `keep`, as their file was not stored."""
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
                f"{self._path}: another process made this file meanwhile; "
                f"the bad rows are in {other}"
            ) from None


def _unnamed(directory: Path) -> int:
    """Open a file without a name in a directory; return its descriptor."""
    with suppress(AttributeError, OSError):  # a system or a file system without such files
        return os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o666)
    with tempfile.TemporaryFile(dir=directory) as file:
        return os.dup(file.fileno())


def _name(file: TextIO, path: Path) -> None:
    """Give a file without a name one. Raises FileExistsError where the name is taken."""
    try:
        # Only with a descriptor of a directory does Python follow the link to the file.
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
