"""Output of `feature-platform why`: a row, its versions and the bars behind it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import typer
from rich.table import Table

from feature_platform.cli.console import name, show, table, time_text
from feature_platform.why import BarVersion, RowVersion, Why

# The versions of a row that are shown.
_VERSIONS = 20
_WIDTH = 80
_TIME = 19


def show_why(found: Why) -> None:
    """Print the history of a row within 80 columns, where its numbers allow it."""
    newest = found.rows[0]
    state = "deleted" if newest.until is not None else "stored"
    typer.echo(f"{found.view} {name(found.symbol)} {time_text(found.bucket)} UTC, {state}")
    shown = found.rows[:_VERSIONS]
    longest = max(map(len, ("known since", *found.columns)))
    across = max((_WIDTH - longest) // (_TIME + 2), 1)
    for first in range(0, len(shown), across):
        show(_row_table(found, shown[first : first + across]))
        typer.echo()
    if len(shown) < len(found.rows):
        typer.echo(f"and {_count(len(found.rows) - len(shown), 'earlier version')} of the row\n")
    for source in found.sources:
        typer.echo(
            f"{_count(source.bars, 'bar')} of {source.source}, {time_text(source.first)} to"
            f" {time_text(source.last)}"
        )
    if found.unchanged is not None:
        first_bar, last_bar = time_text(found.unchanged.first), time_text(found.unchanged.last)
        number = _count(found.unchanged.bars, "bar")
        typer.echo(f"{number} of its bucket did not change, {first_bar} to {last_bar}")
    if not found.bars:
        typer.echo("no bar changed, came late or waits for a refresh")
        return
    if found.unchanged is None and not found.more:
        typer.echo("bars of its bucket, and earlier bars that changed, came late or wait:")
    else:
        typer.echo("bars that changed, came late or wait for a refresh:")
    show(_bar_table(found.bars))
    if found.more:
        typer.echo(f"and {_count(found.more, 'earlier bar')}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
    return f"refresh {one.since}" if one.since else "before numbers"


def _bar_table(bars: list[BarVersion]) -> Table:
    """Show each version, and each deletion, with the refresh since which it is known."""
    made = table("bar (UTC)", ">close", ">vol", "source", ">refresh", "known since (UTC)")
    for one in bars:
        if one.gone:
            made.add_row(time_text(one.ts), "deleted", "", "", *_known(one.until, one.until_known))
        made.add_row(
            time_text(one.ts),
            _number(one.close),
            _number(one.vol),
            one.source,
            *_known(one.no, one.known_by),
        )
    return made


def _known(number: int | None, moment: datetime | None) -> tuple[str, str]:
    refresh = "waits" if number is None else str(number or "-")
    return refresh, _moment(moment, number)


def _moment(moment: datetime | None, number: int | None) -> str:
    if moment is None:
        return "not noted" if number else "-"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _number(value: float | None) -> str:
    """Return a number with at most seven digits, so that a line fits."""
    return "NULL" if value is None else f"{value:.7g}"
