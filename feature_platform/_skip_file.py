"""The file of the rows that an import left out."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from feature_platform.bar_rules import BadRow
from feature_platform.errors import UserError

HEADER = ("file", "line", "reason", "text")


class SkipFile:
    """Collect rows in a hidden file beside `path`, which appears whole when the block is left.

    It appears only if a row was kept, and never in place of another file.
    Raises UserError where `path` exists, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path}: exists already, and rows that were left out may be in it")
        if not path.parent.is_dir():
            raise UserError(f"{path}: there is no directory {path.parent}")
        self._path = path
        self._partial = path.parent / f".{path.name}.{os.getpid()}.partial"
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
        self._file.close()
        if self._kept:
            self._publish()
        else:
            self._partial.unlink()

    def add(self, rows: Iterable[BadRow]) -> None:
        """Write rows down, to be kept or discarded."""
        for row in rows:
            csv.writer(self._open()).writerow((row.file, row.line, row.reason, row.text))

    def keep(self) -> None:
        """Make sure of the rows so far: they will not be in the database."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._kept = self._file.tell()

    def discard(self) -> None:
        """Forget the rows since the last `keep`, as their file was not stored."""
        if self._file is not None:
            self._file.seek(self._kept)
            self._file.truncate()

    def _open(self) -> TextIO:
        if self._file is None:
            try:
                self._file = self._partial.open("x", encoding="utf-8", newline="")
            except OSError as error:
                raise UserError(f"{self._path}: cannot be written: {error.strerror}") from None
            csv.writer(self._file).writerow(HEADER)
        return self._file

    def _publish(self) -> None:
        try:
            os.link(self._partial, self._path)
        except FileExistsError:
            raise UserError(
                f"{self._path}: made by somebody else meanwhile; what was left out is in "
                f"{self._partial}"
            ) from None
        except OSError:
            # A file system without hard links: nobody else is likely to make that name now.
            self._partial.rename(self._path)
        else:
            self._partial.unlink()
