"""Output of `feature-platform why`: a row, its versions and the bars behind it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import typer
from rich.table import Table

from feature_platform.cli.console import name, show, table, time_text, value_text
from feature_platform.counted import counted
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
    values = [
        _row_texts([one.values[place] for one in shown]) for place in range(len(found.columns))
    ]
    longest = max(map(len, ("known since", *found.columns)))
    widest = max((_TIME, *(len(text) for texts in values for text in texts)))
    across = max((_WIDTH - longest) // (widest + 2), 1)
    for first in range(0, len(shown), across):
        part = slice(first, first + across)
        show(_row_table(found.columns, shown[part], [texts[part] for texts in values]))
        typer.echo()
    if len(shown) < len(found.rows):
        typer.echo(f"and {counted(len(found.rows) - len(shown), 'earlier version')} of the row\n")
    for source in found.sources:
        typer.echo(
            f"{counted(source.bars, 'bar')} of {source.source}, {time_text(source.first)} to"
            f" {time_text(source.last)}"
        )
    if found.unchanged is not None:
        first_bar, last_bar = time_text(found.unchanged.first), time_text(found.unchanged.last)
        number = counted(found.unchanged.bars, "bar")
        typer.echo(f"{number} of this bucket did not change, {first_bar} to {last_bar}")
    if not found.bars:
        typer.echo("No bar was corrected, late, or not refreshed.")
        return
    if found.unchanged is None and not found.more:
        typer.echo("Bars of this bucket; earlier bars that were corrected, late, or not refreshed:")
    else:
        typer.echo("Bars that were corrected, late, or not refreshed:")
    _show_bars(found.bars, found.bucket)
    if found.more:
        typer.echo(f"and {counted(found.more, 'earlier bar')}")


def _row_texts(values: Sequence[float | None]) -> list[str]:
    """Return a column's values in the versions of a row: with seven digits, so that a line fits.

    They are in full where different values would look alike.
    """
    short = ["NULL" if value is None else f"{value:.7g}" for value in values]
    return [*map(value_text, values)] if len(set(short)) < len(set(values)) else short


def _row_table(
    columns: Sequence[str], versions: Sequence[RowVersion], values: Sequence[Sequence[str]]
) -> Table:
    """Show the values of some versions, one column a version, the newest first.

    values: the texts of each column, by version.
    """
    made = table("column", *(">" + _version(one) for one in versions))
    made.add_row("known since", *(_moment(one.known_by, one.since) for one in versions))
    if any(one.until is not None for one in versions):
        made.add_row(
            "until", *(_moment(one.gone_by, one.until) if one.until else "-" for one in versions)
        )
    for column, texts in zip(columns, values, strict=True):
        made.add_row(column, *texts)
    return made


def _version(one: RowVersion) -> str:
    return f"refresh {one.since}" if one.since else "before numbers"


def _show_bars(bars: list[BarVersion], bucket: datetime) -> None:
    """Print versions of bars.

    Where a table with all columns does not fit, the times since when refreshes are known follow in
    a table of their own. Where that does not fit either, there are no sources.
    """
    utc = bucket.astimezone(UTC)
    short = {one.ts.astimezone(UTC).year for one in bars} == {utc.year}
    whole = _bar_table(bars)
    without_time = _bar_table(bars, with_known=False, with_year=not short)
    without_source = _bar_table(bars, with_known=False, with_year=not short, with_source=False)
    shown = show(whole, without_time, without_source, width=_WIDTH)
    if shown is whole:
        return
    if shown is without_source:
        typer.echo("(a wider terminal shows the sources, too)")
    known = {one.no: one.known_by for one in bars}
    known |= {one.until: one.until_known for one in bars if one.gone}
    times = table(">refresh", "known since (UTC)")
    for number in sorted(filter(None, known), reverse=True):
        times.add_row(*_known(number, known[number]))
    if times.row_count:
        typer.echo()
        show(times)


def _bar_table(
    bars: list[BarVersion],
    *,
    with_known: bool = True,
    with_year: bool = True,
    with_source: bool = True,
) -> Table:
    """Show each version, and each deletion, with the refresh since which it is known.

    The open, high and low are shown where versions of a bar differ in them.
    """
    prices = [one for one in ("open", "high", "low") if _is_changed(bars, one)]
    made = table(
        "bar (UTC)",
        *(">" + price for price in prices),
        ">close",
        ">vol",
        *(("source",) if with_source else ()),
        ">refresh",
        *(("known since (UTC)",) if with_known else ()),
    )

    def add(one: BarVersion, cells: Sequence[str], known: tuple[str, str]) -> None:
        time = time_text(one.ts)
        made.add_row(
            time if with_year else time.partition("-")[2],
            *cells[: None if with_source else -1],
            *known[: None if with_known else -1],
        )

    for one in bars:
        if one.gone:
            deleted = [*("" for _ in prices), "deleted", "", ""]
            add(one, deleted, _known(one.until, one.until_known))
        numbers = (getattr(one, price) for price in (*prices, "close", "vol"))
        add(one, [*map(value_text, numbers), one.source], _known(one.no, one.known_by))
    return made


def _is_changed(bars: list[BarVersion], price: str) -> bool:
    """Return whether the versions of a bar differ in a price."""
    return len({(one.ts, getattr(one, price)) for one in bars}) > len({one.ts for one in bars})


def _known(number: int | None, moment: datetime | None) -> tuple[str, str]:
    refresh = "waits" if number is None else str(number or "-")
    return refresh, _moment(moment, number)


def _moment(moment: datetime | None, number: int | None) -> str:
    if moment is None:
        return "not noted" if number else "-"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
