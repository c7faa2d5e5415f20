"""Times on the command line."""

from __future__ import annotations

from datetime import datetime

import typer


def parse_time(text: str) -> datetime:
    """Read an ISO-8601 date or time; without an offset it is UTC."""
    from feature_platform import clock

    try:
        return clock.parse_time(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
