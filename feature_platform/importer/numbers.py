"""Convert texts of prices and volumes to the nearest doubles."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_platform.bar_rules import BOUNDS, Floats, Mask, to_numpy

_NOT_ZERO = re.compile(r"[+-]?[0.]*[1-9]")


def text_numbers(name: str, texts: pa.Array, faults: dict[int, str]) -> Floats:
    """Convert texts to numbers, to NaN where a text is not a number.

    faults: receives the reason for each such text, by its index.
    """
    values, read = _cast_each(texts, pa.float64())
    numbers: Floats = values.astype(np.float64)
    numbers[~read] = np.nan
    for index in np.flatnonzero(~read).tolist():
        text = texts[index].as_py()
        reason = f"{name} {text!r} is not a number" if text else f"{name} is missing"
        faults.setdefault(index, reason)
    # 1e-400 is converted to 0, which is a valid volume.
    for index in np.flatnonzero(numbers == 0).tolist():
        text = texts[index].as_py()
        if _NOT_ZERO.match(text):
            faults.setdefault(index, f"{name} {text} is outside of {BOUNDS}")
    return numbers


def _cast_each(texts: pa.Array, kind: pa.DataType) -> tuple[NDArray[np.generic], Mask]:
    """Cast the texts; return the values, 0 where a text cannot be cast, and a mask of the others.

    A cast fails as a whole. So an array that fails is halved until single texts fail, which is
    cheap while these are few.
    """
    try:
        values = texts.cast(kind)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return np.zeros(1, np.int64), np.zeros(1, np.bool_)
        middle = len(texts) // 2
        halves = [_cast_each(half, kind) for half in (texts[:middle], texts[middle:])]
        return (
            np.concatenate([values for values, _ in halves]),
            np.concatenate([read for _, read in halves]),
        )
    # Timestamps become integers, so that they can be joined with the 0 of a text that is no time.
    numbers = values.cast(pa.int64()) if pa.types.is_timestamp(kind) else values
    return to_numpy(numbers), np.ones(len(texts), np.bool_)
