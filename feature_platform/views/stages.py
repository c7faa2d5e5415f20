"""Sub-queries that are composed of columns, each of which knows the columns that it reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from string import Formatter

from psycopg import sql

from feature_platform.views.expressions import MINUTE

_FORMATTER = Formatter()


class Ref(sql.Identifier):
    """A column of an earlier stage."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def text(template: str, **parts: sql.Composable) -> sql.Composed:
    """Return a text with its names in braces replaced by the parts, and by columns without one."""
    names = {name for _, name, _, _ in _FORMATTER.parse(template) if name is not None}
    return sql.SQL(template).format(
        **{name: parts[name] if name in parts else Ref(name) for name in names}
    )


def refs(one: sql.Composable) -> Iterator[str]:
    """Yield the names of the columns that a text reads."""
    if isinstance(one, Ref):
        yield one.name
    elif isinstance(one, sql.Composed):
        for part in one:
            yield from refs(part)


def listed(items: Iterable[sql.Composable], separator: str = ", ") -> sql.Composed:
    """Return the items with a separator between them."""
    return sql.SQL(separator).join(items)


def named(value: sql.Composable, name: str) -> sql.Composed:
    """Return an entry of a SELECT list."""
    return text("{value} AS {name}", value=value, name=sql.Identifier(name))


def interval(span: timedelta) -> sql.Composed:
    """Return a span as an SQL literal; never in days, which follow the session's time zone."""
    return sql.SQL("interval {}").format(sql.Literal(f"{span // MINUTE} minutes"))


def double(value: float) -> sql.Composed:
    """Return a number as an SQL literal without loss."""
    return sql.SQL("{}::double precision").format(sql.Literal(repr(value)))


@dataclass(frozen=True)
class Column:
    """A column of a stage."""

    name: str
    value: sql.Composable


@dataclass
class Stage:
    """One sub-query: the columns that it adds, and the rows that it keeps.

    is_last: whether no other row reads these columns.
    """

    columns: list[Column] = field(default_factory=list)
    where: sql.Composed | None = None
    is_last: bool = False

    def add(self, name: str, value: sql.Composable) -> Ref:
        """Add a column, unless the stage has it, and return a reference to it."""
        if all(column.name != name for column in self.columns):
            self.columns.append(Column(name, value))
        return Ref(name)


def render(
    stages: list[Stage], carried: set[str], wanted: set[str], first: str
) -> tuple[list[sql.Composed], str, set[str]]:
    """Return the stages as a chain of named sub-queries, the name of the last, and the columns that
    the first reads.

    carried: columns of the relation `first`, which the first stage reads.
    wanted: columns of the last stage.
    """
    needed: list[set[str]] = []
    after = set(wanted)
    for stage in reversed(stages):
        stage.columns = [column for column in stage.columns if column.name in after]
        needed.append(after - {column.name for column in stage.columns})
        texts = [column.value for column in stage.columns]
        texts += [] if stage.where is None else [stage.where]
        after = needed[-1] | {one for value in texts for one in refs(value)}
    missing = after - carried
    if missing:
        raise AssertionError(f"no stage computes {sorted(missing)}")
    parts, before = [], first
    for at, (stage, kept) in enumerate(zip(stages, reversed(needed), strict=True), 1):
        if not stage.columns and stage.where is None:
            continue
        columns: list[sql.Composable] = [Ref(name) for name in sorted(kept)]
        columns += [named(column.value, column.name) for column in stage.columns]
        parts.append(
            text(
                "{name} AS (\n    SELECT {columns}\n    FROM {before}{where} OFFSET 0\n)",
                name=sql.Identifier(f"s{at}"),
                columns=listed(columns, ",\n           "),
                before=sql.Identifier(before),
                where=sql.SQL("")
                if stage.where is None
                else text(" WHERE {condition}", condition=stage.where),
            )
        )
        before = f"s{at}"
    return parts, before, after
