"""The commands `feature-platform lake`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from feature_platform.counted import counted
from feature_platform.errors import UserError

_EXAMPLES = 10


def _day(moment: datetime) -> str:
    """Return the UTC day of a time; the session may have another zone."""
    return f"{moment.astimezone(UTC):%Y-%m-%d}"


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
    from feature_platform.cli.panics import without_panics
    from feature_platform.lake.sync import sync

    with database_session() as connection, without_panics():
        for done in sync(connection, tables, rebuild=rebuild):
            until = "no rows yet" if done.until is None else f"complete until {_day(done.until)}"
            typer.echo(
                f"{done.name}: {counted(done.rows, 'row')} in {counted(done.commits, 'commit')},"
                f" {console.duration(done.duration)}; {until}"
            )


@lake.command("verify")
def verify_command(
    tables: _Tables = None,
    start: Annotated[
        str | None, typer.Option(help="The first day, such as 2026-01-01; by default the oldest.")
    ] = None,
    nightly: Annotated[
        bool,
        typer.Option("--nightly", help="Compare only young files, and a thirtieth of all others."),
    ] = False,
) -> None:
    """Compare the lake with the database, by count and checksum for each symbol and day."""
    from feature_platform.cli import console
    from feature_platform.cli.app import database_session
    from feature_platform.cli.panics import without_panics
    from feature_platform.clock import parse_time
    from feature_platform.lake.verify import verify

    try:
        first = None if start is None else parse_time(start)
    except ValueError:
        raise UserError(f"--start {start} is not a day; write it as 2026-01-01") from None
    differ = False
    with database_session() as connection, without_panics():
        for report in verify(connection, tables, start=first, nightly=nightly):
            typer.echo(
                f"{report.name}: {counted(report.rows, 'row')},"
                f" {counted(report.days, 'day')} of symbols compared in"
                f" {console.duration(report.duration)}, waiting for a sync: {report.pending:,},"
                f" {counted(report.sampled, 'row')} compared one by one;"
                f" different: {len(report.differences):,}"
            )
            for one in report.differences[:_EXAMPLES]:
                typer.echo(
                    f"  {one.symbol} on {one.day:%Y-%m-%d}:"
                    f" {counted(one.rows_in_lake, 'row')} in the lake,"
                    f" {one.rows_in_database:,} in the database"
                )
            if report.lost_files:
                typer.echo(f"  missing: {counted(report.lost_files, 'file')}")
            differ = differ or not report.equal
    if differ:
        typer.echo("the next `feature-platform lake sync` writes these days again")
        raise typer.Exit(1)


@lake.command("compact")
def compact_command(tables: _Tables = None) -> None:
    """Write partitions of several files as one, and delete files of old versions."""
    from feature_platform.cli import console
    from feature_platform.cli.app import database_session
    from feature_platform.cli.panics import without_panics
    from feature_platform.lake.compact import compact

    with database_session() as connection, without_panics():
        for done in compact(connection, tables):
            typer.echo(
                f"{done.name}: {counted(done.partitions, 'partition')} written again,"
                f" {counted(done.deleted, 'old file')} deleted; {counted(done.files, 'file')},"
                f" {console.size(done.size)}"
            )


@lake.command("status")
def status_command() -> None:
    """Show each table: until when it is complete, days that wait, files and bytes."""
    from feature_platform.cli import console
    from feature_platform.cli.app import database_session
    from feature_platform.lake.status import lake_status

    made = console.table(
        "table", "complete until", ">waiting", ">rows", ">files", ">size", "synced"
    )
    with database_session() as connection:
        for one in lake_status(connection):
            made.add_row(
                one.name,
                "-" if one.mirrored_until is None else _day(one.mirrored_until),
                f"{one.waiting:,}",
                f"{one.rows:,}",
                f"{one.files:,}",
                console.size(one.size),
                "-" if one.synced_at is None else f"{one.synced_at:%Y-%m-%d %H:%M}",
            )
    console.show(made)
