"""Files of bars: CSV or Parquet, compressed or not, read in pieces and judged row by row."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from feature_platform._bar_csv import ByteStream, read_csv
from feature_platform._bar_parquet import read_parquet
from feature_platform._bar_symbols import SymbolRule
from feature_platform.bar_columns import ColumnMap
from feature_platform.bar_rules import BadRow, Batch
from feature_platform.errors import UserError

__all__ = ["BATCH_ROWS", "BadRow", "Batch", "ColumnMap", "read_bars"]

BATCH_ROWS = 100_000

# What a row of a CSV file takes, about: Binance's have 100 to 130 bytes, six columns 60.
_BYTES_PER_ROW = 96

_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_UNSUPPORTED = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
}


def read_bars(
    path: Path,
    *,
    symbol: str | None = None,
    columns: ColumnMap | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Generator[Batch, None, None]:
    """Read a file of bars in pieces, and find every row that cannot be stored.

    The content tells the format: CSV, plain, in gzip or in a zip of one or more files, or
    Parquet. CSV is separated by comma, semicolon or tab, with a header line or in the order of
    Binance's klines. Times are whole numbers of seconds, milliseconds, microseconds or
    nanoseconds, told by magnitude, or ISO-8601, UTC where they name no zone.

    symbol: whose bars they are; None where a column says it.
    columns: the columns that are not recognised by name.
    batch_rows: about how many rows to hold at a time.
    Raises UserError where the file as a whole cannot be read.
    """
    rule = SymbolRule(symbol)
    names = columns or ColumnMap()
    magic = _magic(path)
    if magic.startswith(_PARQUET):
        yield from read_parquet(path, columns=names, symbol=rule, batch_rows=batch_rows)
        return
    size = path.stat().st_size
    with _damage_explained(path), path.open("rb") as raw:
        for name, stream in _texts(path, raw, magic):
            yield from read_csv(
                stream,
                name,
                columns=names,
                symbol=rule,
                block_size=batch_rows * _BYTES_PER_ROW,
                done=lambda: min(raw.tell() / size, 1.0),
            )


def _magic(path: Path) -> bytes:
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():
        raise UserError(f"{path}: not a file")
    with _damage_explained(path), path.open("rb") as raw:
        magic = raw.read(8)
    if not magic:
        raise UserError(f"{path}: the file is empty")
    for start, name in _UNSUPPORTED.items():
        if magic.startswith(start):
            raise UserError(f"{path}: {name} is not supported; unpack it, or use gzip or zip")
    return magic


def _texts(path: Path, raw: IO[bytes], magic: bytes) -> Iterator[tuple[str, ByteStream]]:
    """Open the texts of a file, each with the name to call it by in messages."""
    if magic.startswith(_GZIP):
        with gzip.GzipFile(fileobj=raw) as stream:
            yield str(path), stream
    elif magic.startswith(_ZIP):
        with zipfile.ZipFile(raw) as archive:
            members = [member for member in archive.infolist() if _is_content(member)]
            if not members:
                raise UserError(f"{path}: the zip holds no file")
            for member in members:
                name = str(path) if len(members) == 1 else f"{path}!{member.filename}"
                if member.flag_bits & 1:
                    raise UserError(f"{name}: encrypted; unpack it first")
                with archive.open(member) as stream:
                    yield name, stream
    else:
        yield str(path), raw


def _is_content(member: zipfile.ZipInfo) -> bool:
    """Tell a file from a directory and from what macOS adds to its archives."""
    at_home = member.filename.rpartition("/")[2]
    return not (
        member.is_dir()
        or member.filename.startswith("__MACOSX/")
        or at_home.startswith("._")
        or at_home == ".DS_Store"
    )


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise UserError(f"{path}: the file ends too early: fetch it again") from None
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged, fetch it again: {error}") from None
    except NotImplementedError as error:
        raise UserError(f"{path}: packed in a way that is not supported: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
