"""The error for the user, and the text of errors without passwords."""

from __future__ import annotations

import re


class UserError(Exception):
    """An error that the user can correct, in one line: the fault, its place and the remedy."""


_IN_URL = re.compile(r"(?<=://)(?P<user>[^:/?#@]*):.*@", re.DOTALL)
_IN_KEYWORD = re.compile(
    r"(?P<key>\b(?:ssl)?password\s*=\s*)(?:'(?:[^'\\]|\\.)*'?|[^\s&]*)", re.IGNORECASE
)


def redact(url: str) -> str:
    """Return `url`, or any text that holds one, with its passwords replaced by `***`.

    In doubt it hides too much: all between the first colon and the last @.
    """
    hidden = _IN_URL.sub(r"\g<user>:***@", url)
    return _IN_KEYWORD.sub(r"\g<key>***", hidden)


def one_line(error: object) -> str:
    """Return the text of an error in one line, without passwords."""
    return " ".join(redact(str(error)).split())
