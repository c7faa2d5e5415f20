"""`make dev` and `make demo`: everything on one machine."""

from __future__ import annotations
