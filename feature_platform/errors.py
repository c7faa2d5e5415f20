"""The one error that is the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """Say in one clear line what is wrong, where, and what to do about it."""
