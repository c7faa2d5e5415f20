"""Numbers with their noun, for messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, in the singular or plural: "1 row", "2,000 rows".

    The verb of a sentence would depend on the number, too: write a message without one.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
