"""Random numbers that depend only on a key and an index."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# splitmix64's constants (Steele, Lea, Flood 2014): its n-th number is a hash of key + n * step.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST = np.uint64(31)
_TO_53_BITS = np.uint64(11)


def key_of(*parts: object) -> np.uint64:
    """Return a key of the texts of some values; other texts give other keys."""
    text = "\0".join(str(part) for part in parts)
    return np.uint64(int.from_bytes(blake2b(text.encode(), digest_size=8).digest()))


def uniform(key: np.uint64, index: Ints) -> Floats:
    """Return a number from 0 up to, not including, 1 for each index."""
    bits = index.astype(np.uint64) * _STEP + key
    for shift, factor in _MIX:
        bits = (bits ^ (bits >> shift)) * factor
    bits ^= bits >> _LAST
    return (bits >> _TO_53_BITS).astype(np.float64) * 2.0**-53


def uniform_at(key: np.uint64, index: int) -> float:
    """Return a number from 0 up to, not including, 1 for one index."""
    return float(uniform(key, np.array([index]))[0])


def value_noise(key: np.uint64, index: Ints, log2_period: int) -> Floats:
    """Return a smooth curve from -1 to 1 that has a random value at every 2**log2_period indices.

    index: ascending by 1.
    """
    if not len(index):
        return np.empty(0)
    cell = index >> log2_period
    knots = uniform(key, np.arange(cell[0], cell[-1] + 2)) * 2 - 1
    if log2_period == 0:
        return knots[:-1]
    at = (index & ((1 << log2_period) - 1)) * 0.5**log2_period
    before = cell - cell[0]
    curve: Floats = knots[before] + np.diff(knots)[before] * (at * at * (3 - 2 * at))
    return curve
