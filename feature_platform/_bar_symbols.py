"""Whose bar a row is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_platform.bar_rules import to_numpy
from feature_platform.errors import UserError


class Symbols(NamedTuple):
    """Hold the symbol of every row, as a number that counts into names."""

    names: tuple[str, ...]
    codes: NDArray[np.int32]


class SymbolRule:
    """Name the market of every row of one file.

    given: the caller's name for it. In a file that has a column of symbols, it renames the one
    symbol that occurs; None takes the column's.
    """

    def __init__(self, given: str | None) -> None:
        if given is not None and (not given.strip() or "\0" in given):
            raise UserError(f"{given!r} is no symbol; write it as in LINK/USDT")
        self._given = given
        self._renamed: str | None = None

    def check(self, file: str, *, has_column: bool) -> None:
        """Raise UserError where nothing says whose bars a file holds."""
        if self._given is None and not has_column:
            raise UserError(
                f"{file}: no column of symbols, so say whose bars these are: --symbol LINK/USDT"
            )

    def constant(self, rows: int) -> Symbols:
        """Return the given symbol for every row."""
        assert self._given is not None
        return Symbols((self._given,), np.zeros(rows, np.int32))

    def of_column(self, column: pa.Array, faults: dict[int, str]) -> Symbols:
        """Return the symbols of a column of texts.

        faults: gets a reason for every row without a proper one, by its index.
        """
        encoded = column.dictionary_encode()
        names: list[str] = encoded.dictionary.to_pylist()
        codes = to_numpy(encoded.indices).astype(np.int32)
        for code, name in enumerate(names):
            reason = self._fault(name)
            if reason is not None:
                faults.update(dict.fromkeys(np.flatnonzero(codes == code).tolist(), reason))
        if self._given is not None:
            return self.constant(len(codes))
        return Symbols(tuple(names), codes)

    def _fault(self, name: str) -> str | None:
        if not name:
            return "symbol is missing"
        if "\0" in name:
            return f"symbol {name!r} holds a NUL character"
        if self._given is not None:
            if self._renamed is None:
                self._renamed = name
            if name != self._renamed:
                return (
                    f"symbol {name!r} in a file that began with {self._renamed!r}, "
                    f"while all of it is to be stored as {self._given!r}"
                )
        return None
