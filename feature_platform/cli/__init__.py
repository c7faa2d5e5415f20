"""The command line: `feature-platform`."""

from __future__ import annotations
