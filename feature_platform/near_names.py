"""Near names, for error messages: "did you mean 'BTC/USDT'?"."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

_MOST = 3  # names that an error proposes
# Longer names, and more names, are not compared: both may come from outside, and the time of the
# comparison grows with both.
_LONGEST = 50
_MOST_KNOWN = 5_000


def near_names(name: str, known: Sequence[str]) -> str:
    """Return the known names that are nearest, as " (did you mean ...?)", or an empty text.

    Case and punctuation count little.
    """
    sought = _bare(name)
    if not sought or len(sought) > _LONGEST:
        return ""
    bare = {_bare(one): one for one in known}
    near = [one for one in bare if sought in one][:_MOST]
    near = near or get_close_matches(sought, list(bare)[:_MOST_KNOWN], _MOST)
    names = " or ".join(repr(bare[one]) for one in near)
    return f" (did you mean {names}?)" if names else ""


def _bare(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold() or name
