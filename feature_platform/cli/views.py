"""The commands `feature-platform views`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_platform.cli.times import parse_time
from feature_platform.counted import counted
from feature_platform.errors import one_line

if TYPE_CHECKING:
    from psycopg import Connection
    from rich.table import Table

    from feature_platform.views.catalog import ViewPlan, ViewStatus
    from feature_platform.views.view import FeatureView

# The most symbols that a line names.
_SHOWN = 3


class _Engine(Enum):
    duckdb = "duckdb"
    ray = "ray"


class _History(Enum):
    lake = "lake"


views = typer.Typer(help="Declare feature views and show their state.", no_args_is_help=True)

_File = Annotated[Path, typer.Argument(metavar="FILE", help="A Python file with FeatureViews.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of a view.")]


@views.command("plan")
def plan_command(file: _File) -> None:
    """Show the changes of an apply and the cost of each view, without applying."""
    from feature_platform.cli import console
    from feature_platform.cli.app import database_session
    from feature_platform.views import catalog
    from feature_platform.views.expressions import span_words
    from feature_platform.views.files import load_views

    declared = load_views(file)
    with database_session() as connection:
        plans = catalog.plan(connection, declared)
    for number, one in enumerate(plans):
        if number:
            typer.echo()
        typer.echo(_change_line(one))
        made = console.table("  column", "look-back", "expression", wrap_last=True)
        for name, expression in one.view.columns.items():
            text = span_words(one.look_backs[name])
            made.add_row(f"  {name}", text, str(expression))
        console.show(made)
        typer.echo(f"  {_cost_text(one)}")


@views.command("build")
def build_command(
    file: _File,
    engine: Annotated[
        _Engine,
        typer.Option(help="Processes of this machine that read by DuckDB, or a Ray cluster."),
    ] = _Engine.duckdb,
    symbols: Annotated[
        list[str] | None,
        typer.Option(
            "--symbol", "--symbols", metavar="SYMBOL", help="Only this symbol; may be repeated."
        ),
    ] = None,
    start: Annotated[
        datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help="First bucket; by default all."),
    ] = None,
    end: Annotated[
        datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help="End; this bucket is not included."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Directory or URL for the tables; by default in the lake."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tasks at a time; by default all cores.")
    ] = None,
) -> None:
    """Compute the views of this file from the lake's bars, without the database."""
    from feature_platform.cli import console
    from feature_platform.cli.panics import without_panics
    from feature_platform.lake.bars import newest_bars
    from feature_platform.lake.build import build, builds_of
    from feature_platform.views.files import load_views

    declared = load_views(file)
    bars = newest_bars()
    for view in declared:
        with console.progress_bar(view.name) as progress, without_panics():
            built = build(
                view,
                bars,
                f"{output or builds_of()}/{view.name}",
                engine=engine.value,
                symbols=symbols,
                start=start,
                end=end,
                workers=workers,
                progress=progress,
            )
        typer.echo(
            f"{view.name}: {counted(built.rows, 'row')} of {counted(built.symbols, 'symbol')} in"
            f" {console.duration(built.duration)}: {built.uri}"
        )
        for column, of in built.wide.items():
            typer.echo(
                f"  {column}: its exact sums took more than 128 bits, for {_some(sorted(of))}"
            )


@views.command("apply")
def apply_command(
    file: _File,
    history: Annotated[
        _History | None,
        typer.Option(
            help="Take the history from builds of `views build`, instead of computing it."
        ),
    ] = None,
    builds: Annotated[
        str | None,
        typer.Option(
            "--builds", metavar="DIR", help="The --output of `views build`; by default in the lake."
        ),
    ] = None,
) -> None:
    """Make the views of this file exist as declared; their history is built in the background."""
    from feature_platform import status
    from feature_platform.cli import console
    from feature_platform.cli.app import database_session
    from feature_platform.refresh import refresh
    from feature_platform.views import catalog
    from feature_platform.views.files import load_views

    declared = load_views(file)
    if history is not None:
        from feature_platform.lake.build import builds_of
        from feature_platform.lake.history import check_builds

        directory = builds or builds_of()
        check_builds(declared, directory)
    with database_session() as connection:
        plans = catalog.apply(connection, declared)
        for one in plans:
            typer.echo(_change_line(one))
        if history is not None:
            _take_history(connection, declared, directory)
        if all(one.action == "unchanged" for one in plans):
            return
        if status.policy_runners(connection):
            typer.echo("history is built in the background: `feature-platform views list`")
            return
        with console.progress_bar("build") as progress:
            refresh(connection, progress=progress)
            rows = catalog.refresh_views(connection)
    typer.echo(
        f"no worker is running, so the history was built now: {counted(rows, 'row')} written"
    )


def _take_history(
    connection: Connection[Any], declared: Sequence[FeatureView], directory: str
) -> None:
    from feature_platform.cli import console
    from feature_platform.lake.history import take_history

    for view in declared:
        with console.progress_bar(view.name) as progress:
            taken = take_history(connection, view, f"{directory}/{view.name}", progress)
        left = f"; the database computes {counted(taken.left, 'other')}" if taken.left else ""
        typer.echo(f"{view.name}: {counted(taken.rows, 'row')} from the lake{left}")


@views.command("list")
def list_command() -> None:
    """Show each view: version, columns, look-back, built part, waiting buckets, lag and state."""
    from feature_platform.cli import console
    from feature_platform.cli.app import database_session
    from feature_platform.views import catalog

    with database_session() as connection:
        found = catalog.list_views(connection)
    if not found:
        typer.echo("no feature views yet: `feature-platform views apply FILE`")
        return
    console.show(views_table(found), views_table(found, short=True))
    for one in found:
        if one.error is not None:
            typer.echo(f"{one.name} version {one.version}: {one_line(one.error)}")


@views.command("show")
def show_command(
    name: _Name,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL that keeps it exact.")] = False,
) -> None:
    """Show the columns of a view with their expressions."""
    from feature_platform.cli import console
    from feature_platform.cli.app import database_session
    from feature_platform.views import catalog

    with database_session() as connection:
        versions = catalog.versions_of(connection, name)
        if sql:
            typer.echo(catalog.compiled_text(connection, name))
            return
    for one in versions:
        typer.echo(
            f"{one.name} version {one.version}, every {console.duration(one.every)},"
            f" {state_text(one)}: {one.description or 'no description'}"
        )
        made = console.table("  column", "expression", wrap_last=True)
        for column, source in zip(one.columns, one.sources, strict=True):
            made.add_row(f"  {column}", source)
        console.show(made)


@views.command("drop")
def drop_command(
    name: _Name,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without a question.")] = False,
) -> None:
    """Drop a view with all of its rows; bars and other views stay as they are."""
    from feature_platform.cli.app import database_session
    from feature_platform.views import catalog

    if not yes:
        typer.confirm(f"Drop the feature view {name} and all of its rows?", abort=True)
    with database_session() as connection:
        catalog.drop(connection, name)
    typer.echo(f"dropped: {name}")


def state_text(one: ViewStatus) -> str:
    """Return the state of a version in words."""
    if one.state == "waiting":
        return "complete, waiting"
    if one.state == "building":
        return f"building, {one.built:.0%}"
    return one.state


def views_table(found: Sequence[ViewStatus], *, short: bool = False) -> Table:
    """Show the state of each version of each view.

    short: without the columns that `views show` gives, for a narrow terminal.
    """
    from feature_platform.cli import console
    from feature_platform.views.expressions import span_words

    sizes = () if short else (">columns", ">look-back")
    made = console.table("view", ">version", "every", *sizes, ">built", ">waiting", ">lag", "state")
    for one in found:
        made.add_row(
            one.name,
            str(one.version),
            span_words(one.every),
            *(() if short else (str(len(one.columns)), span_words(one.look_back))),
            f"{int(one.built * 100)} %",
            f"{one.dirty:,}",
            "-" if one.lag is None else console.duration(one.lag),
            state_text(one),
        )
    return made


def _some(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _change_line(one: ViewPlan) -> str:
    head = f"{one.view.name}: {one.action}, version {one.version}"
    if one.action == "new":
        return f"{head}, {counted(len(one.view.columns), 'column')}"
    parts = [
        f"{word} {', '.join(names)}"
        for word, names in (
            ("adds", one.added),
            ("removes", one.removed),
            ("changes", one.changed),
        )
        if names
    ]
    return "; ".join([head, *parts])


def _cost_text(one: ViewPlan) -> str:
    from feature_platform.cli import console

    size = f"{console.size(one.bytes_a_year)} a symbol and year"
    if one.milliseconds is None:
        return f"{size}; no bars to measure the time of a new bucket with"
    symbols = counted(one.symbols, "symbol")
    return f"{size}; {one.milliseconds:,.0f} ms for a new bucket of {symbols}, measured on a sample"
