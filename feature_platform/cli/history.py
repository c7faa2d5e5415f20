"""Output of `feature-platform why`: a row, its versions and the bars behind it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import typer
from rich.table import Table

from feature_platform.cli.console import name, show, table, time_text
from feature_platform.why import BarVersion, RowVersion, Why

# The versions of a row that are shown, and how many of them beside each other in 80 columns.
_VERSIONS = 30
_ACROSS = 3


def show_why(found: Why) -> None:
    """Print the history of a row within 80 columns, where its numbers allow it."""
    newest = found.rows[0]
    state = "deleted" if newest.until is not None else "stored"
    typer.echo(f"{found.view} {name(found.symbol)} {time_text(found.bucket)} UTC, {state}")
    for first in range(0, min(len(found.rows), _VERSIONS), _ACROSS):
        show(_row_table(found, found.rows[first : first + _ACROSS]))
        typer.echo()
    if len(found.rows) > _VERSIONS:
        typer.echo(f"and {len(found.rows) - _VERSIONS:,} earlier versions of the row\n")
    for source in found.sources:
        typer.echo(
            f"{source.bars:,} bars of {source.source}, {time_text(source.first)} to"
            f" {time_text(source.last)}"
        )
    typer.echo("bars of its bucket, and earlier bars that changed or came late:")
    show(_bar_table(found.bars))
    if found.has_more:
        typer.echo("and more; these are the newest")


def _row_table(found: Why, versions: Sequence[RowVersion]) -> Table:
    """Show the values of some versions, one column a version, the newest first."""
    made = table("column", *(">" + _version(one) for one in versions))
    made.add_row("known since", *(_moment(one.known_by, one.since) for one in versions))
    if any(one.until is not None for one in versions):
        made.add_row(
            "until", *(_moment(one.gone_by, one.until) if one.until else "-" for one in versions)
        )
    for place, column in enumerate(found.columns):
        made.add_row(column, *(_number(one.values[place]) for one in versions))
    return made


def _version(one: RowVersion) -> str:
    return f"refresh {one.since}" if one.since else "before refreshes had numbers"


def _bar_table(bars: list[BarVersion]) -> Table:
    made = table("bar (UTC)", ">close", ">vol", "source", ">refresh", "known since (UTC)", "then")
    for one in bars:
        made.add_row(
            time_text(one.ts),
            _number(one.close),
            _number(one.vol),
            one.source,
            "waits" if one.no is None else str(one.no),
            time_text(one.known_by or one.inserted_at),
            "" if one.is_stored else "deleted" if one.gone else "changed",
        )
    return made


def _moment(moment: datetime | None, number: int | None) -> str:
    if moment is None:
        return "not noted" if number else "-"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _number(value: float | None) -> str:
    """Return a number with at most seven digits, so that a line fits."""
    return "NULL" if value is None else f"{value:.7g}"
