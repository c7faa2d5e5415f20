"""Write docs/settings.md from the settings class: `make docs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from feature_platform.clock import WallClock
from feature_platform.settings import PREFIX, Settings

_HEAD = """# Settings

Environment variables. A variable that is not set, or is empty, has its default. A bad value ends
each command with one line that names the variable, and exit status 2.

`make docs` writes this page from `feature_platform/settings.py`.

| name | default | meaning |
|---|---|---|
"""


def settings_page() -> str:
    """Return the text of docs/settings.md."""
    lines = [
        f"| `{PREFIX}{name.upper()}` | {_shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _shown(default: Any) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, WallClock):
        return "the wall clock"
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    return f"`{text}`"


if __name__ == "__main__":
    Path("docs/settings.md").write_text(settings_page(), encoding="utf-8")
