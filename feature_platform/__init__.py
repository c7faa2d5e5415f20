"""Turn one-minute market bars into exact, always current features, inside PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feature_platform.frames import latest, read_bars, read_features

__version__ = "0.1.0"

__all__ = ["__version__", "latest", "read_bars", "read_features"]


def __getattr__(name: str) -> Any:
    """Import what reads frames when it is first asked for: the command line needs no pandas."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from feature_platform import frames

    return getattr(frames, name)
