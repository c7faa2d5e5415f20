"""Keep one-minute market features in PostgreSQL exactly up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feature_platform.frames import latest, read_bars, read_features

__version__ = "0.1.0"

__all__ = ["__version__", "latest", "read_bars", "read_features"]


def __getattr__(name: str) -> Any:
    """Import the functions that read frames on first use: the command line does not need them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from feature_platform import frames

    return getattr(frames, name)
