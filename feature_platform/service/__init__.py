"""The model service: features over HTTP, for whoever has no business with SQL."""

from __future__ import annotations
