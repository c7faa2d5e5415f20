"""Reports of a library's own panics, which it prints on the terminal."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from feature_platform.errors import UserError

_PANIC = re.compile(rb"\n?thread '[^\n]*panicked at .*?\nnote: [^\n]*\n", re.DOTALL)
_STDERR = 2


@contextmanager
def without_panics() -> Iterator[None]:
    """Drop the panics that the body's libraries print where it raises UserError with the reason.

    After an error of a full disk, each writer thread of the Delta library panics as well. All other
    text appears when the body ends; that of Python appears at once.
    """
    python = sys.__stderr__
    if python is None or sys.stderr is not python:  # nested, or in a test
        yield
        return
    python.flush()
    dropped = None
    with (
        os.fdopen(os.dup(_STDERR), "w", buffering=1, encoding=python.encoding) as terminal,
        tempfile.TemporaryFile() as captured,
    ):
        sys.stderr = terminal
        os.dup2(captured.fileno(), _STDERR)
        try:
            yield
        except UserError:
            dropped = _PANIC
            raise
        finally:
            os.dup2(terminal.fileno(), _STDERR)
            sys.stderr = python
            captured.seek(0)
            text = captured.read()
            os.write(_STDERR, text if dropped is None else dropped.sub(b"", text))
