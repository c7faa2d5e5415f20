"""Delete all data of one symbol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from feature_platform.errors import UserError
from feature_platform.queries import queries
from feature_platform.settings import PREFIX


@dataclass(frozen=True)
class Forgotten:
    """The counts of deleted bars and feature rows."""

    bars: int
    features: int


def forget(connection: psycopg.Connection[Any], symbol: str) -> Forgotten:
    """Delete the bars, feature rows, gaps, marks, state and heartbeat of a symbol.

    It is one transaction; only the owner of the schema may call it.
    Raises UserError where a recorder records the symbol, or the user is not the owner.
    """
    parameters = {"symbol": symbol}
    try:
        with connection.transaction():
            if connection.execute(queries["forget_recorded_until"], parameters).fetchone():
                raise UserError(
                    f"{symbol!r} is being recorded: remove it from {PREFIX}SYMBOLS and start the"
                    " recorder again first"
                )
            row = connection.execute(queries["forget_symbol"], parameters).fetchone()
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(
            f"to forget a symbol needs the owner of the schema: {error.diag.message_primary}"
        ) from None
    assert row is not None, "the statement always gives one row"
    return Forgotten(*row)
