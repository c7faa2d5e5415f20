"""Keep one-minute market features in PostgreSQL exactly up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feature_platform.frames import latest, read_bars, read_features
    from feature_platform.training import forward, forward_return, training_set

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "forward",
    "forward_return",
    "latest",
    "read_bars",
    "read_features",
    "training_set",
]


def __getattr__(name: str) -> Any:
    """Import the functions that read frames on first use: the command line does not need them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("forward", "forward_return", "training_set"):
        from feature_platform import training

        return getattr(training, name)
    from feature_platform import frames

    return getattr(frames, name)
