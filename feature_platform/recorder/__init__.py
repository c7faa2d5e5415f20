"""The recorder: from stream updates to stored bars."""

from __future__ import annotations
