"""The aggregates of the database that a view may name: the form of a name, and its call."""

from __future__ import annotations

import re
from typing import NamedTuple

from psycopg import sql

from feature_platform.errors import UserError

_NAME = re.compile(r"([a-z_][a-z0-9_]*)\.([a-z_][a-z0-9_]*)(?:\((0|1|0?\.\d+|1\.0)\))?")


class Aggregate(NamedTuple):
    """An aggregate by its schema and name; with a fraction, 0 to 1, an ordered-set aggregate."""

    schema: str
    name: str
    fraction: float | None


def parse_aggregate(text: str, where: str) -> Aggregate:
    """Return the aggregate of a text such as "pg_catalog.percentile_cont(0.5)".

    where: the view and column, for the message.
    Raises UserError where the text is not a name with its schema.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise UserError(
            f"{where}: aggregate {text!r} is not a name with its schema, such as"
            ' "public.my_aggregate" or "pg_catalog.percentile_cont(0.5)"'
        )
    return Aggregate(match[1], match[2], None if match[3] is None else float(match[3]))


def aggregate_call(text: str) -> sql.Composed:
    """Return the call of an aggregate on u.value, in the order of u.place."""
    schema, name, fraction = parse_aggregate(text, text)
    called = sql.Identifier(schema, name)
    if fraction is not None:
        return sql.SQL("({}({}) WITHIN GROUP (ORDER BY u.value))::double precision").format(
            called, sql.Literal(fraction)
        )
    return sql.SQL("{}(u.value ORDER BY u.place)::double precision").format(called)
