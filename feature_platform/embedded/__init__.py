"""The embedded PostgreSQL server."""

from __future__ import annotations
