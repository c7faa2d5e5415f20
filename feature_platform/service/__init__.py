"""The model service: features over HTTP, for clients that do not use SQL."""

from __future__ import annotations
