"""Files of declarations: Python modules that make FeatureView objects."""

from __future__ import annotations

import runpy
import traceback
from pathlib import Path

from feature_platform.errors import UserError, one_line
from feature_platform.views.view import FeatureView


def load_views(path: Path) -> list[FeatureView]:
    """Return the feature views that a Python file declares at its top level, in their order.

    Raises UserError, with the line, where the file cannot be run or declares no view, or two of
    one name.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file of feature views")
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}{_line_of(error, path)}: {_reason(error)}") from error
    found: list[FeatureView] = []
    for value in names.values():
        if not isinstance(value, FeatureView) or any(value is one for one in found):
            continue
        if any(value.name == one.name for one in found):
            raise UserError(f"{path}: two views have the name {value.name}")
        found.append(value)
    if not found:
        raise UserError(f"{path} declares no FeatureView at its top level")
    return found


def _line_of(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == path.name
    ]
    return f":{lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {one_line(error)}"
