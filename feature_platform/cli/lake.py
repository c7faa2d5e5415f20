"""The commands `feature-platform lake`."""

from __future__ import annotations

from typing import Annotated

import typer

lake = typer.Typer(help="Mirror bars and features into Delta tables.", no_args_is_help=True)

_Tables = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TABLE]...", help="Tables of the lake; by default all."),
]


@lake.command("sync")
def sync_command(
    tables: _Tables = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Write the tables again from their first rows.")
    ] = False,
) -> None:
    """Write the days that are new or have changed; a reader sees each commit whole."""
    from feature_platform.cli import console
    from feature_platform.cli.app import database_session
    from feature_platform.lake.sync import sync

    with database_session() as connection:
        for done in sync(connection, tables, rebuild=rebuild):
            until = "no rows yet" if done.until is None else f"complete until {done.until:%Y-%m-%d}"
            typer.echo(
                f"{done.name}: {done.rows:,} rows in {done.commits} commits,"
                f" {console.duration(done.duration)}; {until}"
            )
