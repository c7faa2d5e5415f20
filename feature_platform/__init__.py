"""Turn one-minute market bars into exact, always current features, inside PostgreSQL."""

from __future__ import annotations

__version__ = "0.1.0"
