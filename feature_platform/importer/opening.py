"""Find and open the files of an import: directories, patterns, archives, standard input."""

from __future__ import annotations

import glob
import gzip
import io
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self

import pyarrow as pa

from feature_platform.errors import UserError

STDIN = Path("-")

Kind = Literal["csv", "json", "parquet", "feather"]

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_PARQUET, _FEATHER = b"PAR1", b"ARROW1"
_UNSUPPORTED = {
    b"BZh": "bzip2 is not supported; unpack it, or use gzip, zstd or zip",
    b"\xfd7zXZ\x00": "xz is not supported; unpack it, or use gzip, zstd or zip",
    b"7z\xbc\xaf": "7-Zip is not supported; unpack it, or use gzip, zstd or zip",
    b"Rar!": "RAR is not supported; unpack it, or use gzip, zstd or zip",
    b"FEA1": "Feather version 1 is not supported; write it with version 2",
    b"\x89HDF": "HDF5 is not supported; write it as Parquet",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook is not supported; save it as CSV",
}

# Files that often stand beside bars; they are ignored in directories and zip files.
_NO_BARS = (".md", ".pdf", ".html", ".htm", ".checksum", ".sha256", ".md5", ".rst", ".log")
_NO_BARS_NAMES = ("readme", "license", "licence", "copying", "changelog")
# A .txt file beside one of these is a description; otherwise it may hold the bars.
_BARS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".feather", ".arrow", ".zip")
_COMPRESSED = (".gz", ".zst", ".zstd")

# The most levels of archives inside archives. Deeper ones may be made to fill the memory.
_DEEPEST = 4


class Member(NamedTuple):
    """One stream of bars, decompressed.

    name: the file's path, with `!member` where a zip holds several files.
    """

    name: str
    kind: Kind
    stream: Any


def find_files(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files of paths, directories and patterns, and the files that are ignored.

    Raises UserError where a path names no file.
    """
    found: list[Path] = []
    skipped: list[Path] = []
    for path in paths:
        if path == STDIN or path.is_file():
            found.append(path)
        elif path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.is_file())
            kept = _with_bars([str(one.relative_to(path)) for one in inside])
            found += [one for one, keep in zip(inside, kept, strict=True) if keep]
            skipped += [one for one, keep in zip(inside, kept, strict=True) if not keep]
            if not any(kept):
                raise UserError(f"{path}: no file of bars in the directory")
        elif path.exists():
            found.append(path)  # a pipe
        else:
            matches = sorted(Path(one) for one in glob.iglob(str(path), recursive=True))  # noqa: PTH207
            if not matches:
                raise UserError(f"{path}: no such file")
            found += [one for one in matches if not one.is_dir()]
    return found, skipped


class Input:
    """One file of an import, which can be read more than once.

    path: the file; `-` is standard input, which is copied to a file without a name.
    Raises UserError where the file does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = "standard input" if path == STDIN else str(path)
        self.skipped: list[str] = []
        self._copy: IO[bytes] | None = None
        if path == STDIN:
            self._copy = _spooled(sys.stdin.buffer)
        elif not path.exists():
            raise UserError(f"{path}: no such file")
        elif path.is_dir():
            raise UserError(f"{path}: not a file")
        elif not path.is_file():
            with path.open("rb") as pipe:
                self._copy = _spooled(pipe)

    @classmethod
    def of_copy(cls, label: str, copy: IO[bytes]) -> Input:
        """Return the input of an open file without a name."""
        made = cls.__new__(cls)
        made.path = Path(label)
        made.label = label
        made.skipped = []
        made._copy = copy
        return made

    def close(self) -> None:
        """Delete the copy of standard input."""
        if self._copy is not None:
            self._copy.close()

    @contextmanager
    def opened(self) -> Iterator[tuple[IO[bytes], int]]:
        """Open the file; yield it and its size in bytes."""
        if self._copy is not None:
            size = self._copy.seek(0, io.SEEK_END)
            self._copy.seek(0)
            yield self._copy, size
        else:
            with self.path.open("rb") as file:
                yield file, self.path.stat().st_size

    def members(self, file: IO[bytes]) -> Iterator[Member]:
        """Yield the streams of bars in a file, one after the other.

        Raises UserError where the file is empty, damaged, or of a kind that is not supported.
        """
        self.skipped = []
        yield from self._members(self.label, file, 0)

    def _members(self, name: str, stream: Any, depth: int) -> Iterator[Member]:
        magic = stream.peek(512) if hasattr(stream, "peek") else _peek(stream)
        if depth == 0 and not magic:
            raise UserError(f"{name}: the file is empty")
        if depth > _DEEPEST:
            raise UserError(f"{name}: too many levels of archives; unpack it first")
        for start, reason in _UNSUPPORTED.items():
            if magic.startswith(start):
                raise UserError(f"{name}: {reason}")
        if magic[257:262] == b"ustar":
            raise UserError(f"{name}: tar is not supported; unpack it, or use zip")
        if magic.startswith(_GZIP):
            with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
                yield from self._members(name, unpacked, depth + 1)
        elif magic.startswith(_ZSTD):
            # The reader's close() must not close the stream, which may be read again.
            raw = pa.CompressedInputStream(pa.PythonFile(_Unclosed(stream), mode="r"), "zstd")
            yield from self._members(name, io.BufferedReader(raw), depth + 1)
        elif magic.startswith(_ZIP):
            yield from self._zip_members(name, stream, depth)
        elif magic.startswith((_PARQUET, _FEATHER)):
            kind: Kind = "parquet" if magic.startswith(_PARQUET) else "feather"
            if depth == 0:
                yield Member(name, kind, stream)
            else:
                with _spooled(stream) as copy:
                    yield Member(name, kind, copy)
        else:
            yield Member(name, _text_kind(magic), stream)

    def _zip_members(self, name: str, stream: Any, depth: int) -> Iterator[Member]:
        with (
            _spooled(stream) if depth else _Unclosed(stream) as file,
            zipfile.ZipFile(file) as archive,
        ):
            files = [one for one in archive.infolist() if not one.is_dir()]
            if any(one.filename == "[Content_Types].xml" for one in files):
                raise UserError(f"{name}: an Excel workbook is not supported; save it as CSV")
            kept = _with_bars([one.filename for one in files])
            members = [one for one, keep in zip(files, kept, strict=True) if keep]
            self.skipped += [
                f"{name}!{one.filename}"
                for one, keep in zip(files, kept, strict=True)
                if not keep and not _is_hidden(one.filename)
            ]
            if not members:
                raise UserError(f"{name}: no file of bars in the zip")
            for member in members:
                inner = name if len(members) == 1 else f"{name}!{member.filename}"
                if member.flag_bits & 1:
                    raise UserError(f"{inner}: encrypted; unpack it first")
                with archive.open(member) as unpacked:
                    yield from self._members(inner, unpacked, depth + 1)


@contextmanager
def damage_explained(label: str) -> Iterator[None]:
    """Raise UserError, in one line, where a file is damaged or cannot be read."""
    try:
        yield
    except EOFError:
        raise UserError(f"{label}: the file is incomplete: download it again") from None
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{label}: damaged, download it again: {error}") from None
    except NotImplementedError as error:
        raise UserError(f"{label}: the compression is not supported: {error}") from None
    except pa.ArrowException as error:
        raise UserError(f"{label}: damaged, download it again: {_first_line(error)}") from None
    except OSError as error:
        reason = error.strerror or _first_line(error)
        if "ZSTD" in reason or "zstd" in reason.lower():
            raise UserError(f"{label}: damaged, download it again: {reason}") from None
        raise UserError(f"{label}: cannot be read: {reason}") from None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _peek(stream: Any) -> bytes:
    start: bytes = stream.read(512)
    stream.seek(0)
    return start


def _text_kind(start: bytes) -> Kind:
    """Distinguish JSON from CSV by the first character."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "json" if text[:1] in (b"[", b"{") else "csv"


def _is_hidden(name: str) -> bool:
    """Return whether a file is hidden, or one that macOS adds to archives."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith(".")


def _with_bars(names: Sequence[str]) -> list[bool]:
    """Return for each file of a directory or zip whether it may hold bars, by its name."""
    plain = []
    for name in names:
        lower = name.lower()
        for suffix in _COMPRESSED:
            lower = lower.removesuffix(suffix)
        plain.append(lower)
    certain = any(
        name.endswith(_BARS) and not _is_hidden(given)
        for name, given in zip(plain, names, strict=True)
    )
    return [
        not _is_hidden(given)
        and not name.endswith(_NO_BARS)
        and not name.rpartition("/")[2].startswith(_NO_BARS_NAMES)
        and not (certain and name.endswith(".txt"))
        for name, given in zip(plain, names, strict=True)
    ]


def _spooled(stream: Any) -> IO[bytes]:
    """Copy a stream to a file without a name, which the system deletes if the process dies."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    shutil.copyfileobj(stream, copy, 1 << 20)
    copy.seek(0)
    return copy


class _Unclosed:
    """A stream whose close() does not close the stream under it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def close(self) -> None:
        self.closed = True
