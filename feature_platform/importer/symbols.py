"""Whose bar a row is."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_platform.bar_rules import to_numpy
from feature_platform.errors import UserError
from feature_platform.symbols import check_symbol, fault_of


class Symbols(NamedTuple):
    """The symbol of every row, as a number that counts into names."""

    names: tuple[str, ...]
    codes: NDArray[np.int32]


def same_symbol(one: str, other: str) -> bool:
    """Tell whether two spellings are of one symbol: LINKUSDT is LINK/USDT, and kraken:LINK/USDT."""
    return _spelt(one) == _spelt(other)


def _spelt(symbol: str) -> str:
    return re.sub(r"[\s/_\-:.]", "", re.sub(r"^[a-z0-9]+:(?=.*/)", "", symbol)).upper()


class SymbolRule:
    """Give every row of one file its symbol.

    given: the caller's symbol. In a file that has a column of symbols it may only spell the one
    symbol that occurs in another way; None takes the column's.
    renames: whether it may stand for any one symbol of the column.
    Raises UserError where it is no symbol.
    """

    def __init__(self, given: str | None, *, renames: bool = False) -> None:
        if given is not None:
            given = given.strip()
            try:
                check_symbol(given)
            except ValueError as error:
                raise UserError(f"--symbol: {error}") from None
        self._given = given
        self._renames = renames
        self._renamed: str | None = None

    def check(self, file: str, *, has_column: bool) -> None:
        """Raise UserError where nothing says whose bars a file holds."""
        if self._given is None and not has_column:
            raise UserError(
                f"{file}: no column of symbols (--column-symbol NAME names one), "
                "so say whose bars these are: --symbol LINK/USDT"
            )

    def constant(self, rows: int) -> Symbols:
        """Return the given symbol for every row."""
        assert self._given is not None
        return Symbols((self._given,), np.zeros(rows, np.int32))

    def of_column(self, column: pa.Array, faults: dict[int, str]) -> Symbols:
        """Return the symbols of a column of texts without spaces at their ends.

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
        fault = fault_of(name)
        if fault is not None:
            shown = name if len(name) <= 40 else name[:40] + "…"
            return f"symbol {shown!r}: {fault}" if name else "symbol is missing"
        if self._given is None:
            return None
        if self._renames:
            self._renamed = self._renamed or name
            if name != self._renamed:
                return (
                    f"symbol {name!r} in a file that began with {self._renamed!r}, "
                    f"while all of it is to be stored as {self._given!r}"
                )
        elif not same_symbol(name, self._given):
            return (
                f"symbol {name!r} in a file that is to be stored as {self._given!r}: "
                "leave --symbol out (--column-symbol none renames a file's one symbol)"
            )
        return None
