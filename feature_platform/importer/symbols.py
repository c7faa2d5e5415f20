"""Determine the symbol of each row of a file."""

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
    """The symbols of rows: `codes` holds for each row the index of its symbol in `names`."""

    names: tuple[str, ...]
    codes: NDArray[np.int32]


def same_symbol(one: str, other: str) -> bool:
    """Return whether two texts spell one symbol, such as LINKUSDT, LINK/USDT, kraken:LINK/USDT."""
    return _spelt(one) == _spelt(other)


def _spelt(symbol: str) -> str:
    return re.sub(r"[\s/_\-:.]", "", re.sub(r"^[a-z0-9]+:(?=.*/)", "", symbol)).upper()


class SymbolRule:
    """The rule that gives each row of a file its symbol.

    given: the caller's symbol. In a file with a column of symbols, it may only be another spelling
        of the file's one symbol. With None, the symbols are those of the column.
    renames: whether `given` may replace any symbol, if it is the file's only one.
    Raises UserError where `given` is not a valid symbol.
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
        """Raise UserError where neither the caller nor the file gives the symbol."""
        if self._given is None and not has_column:
            raise UserError(
                f"{file}: no column of symbols; give the symbol of the bars, as in "
                "--symbol LINK/USDT, or the column with --column-symbol NAME"
            )

    def constant(self, rows: int) -> Symbols:
        """Return the given symbol for every row."""
        assert self._given is not None
        return Symbols((self._given,), np.zeros(rows, np.int32))

    def of_column(self, column: pa.Array, faults: dict[int, str]) -> Symbols:
        """Return the symbols of a column of texts without spaces at their ends.

        faults: receives the reason for each row without a valid symbol, by its index.
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
                    f"symbol {name!r} in a file that began with {self._renamed!r}, and --symbol "
                    f"{self._given} can rename only one symbol"
                )
        elif not same_symbol(name, self._given):
            return (
                f"symbol {name!r} is not {self._given!r}: omit --symbol, or rename the file's one "
                "symbol with --column-symbol none"
            )
        return None
