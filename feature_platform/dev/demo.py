"""The demo: import, refresh, late data, repair, verify, in a database of its own."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from rich.table import Table

from feature_platform import schema
from feature_platform.cli import console
from feature_platform.database import connect, server_description
from feature_platform.dev import demo_bars
from feature_platform.embedded.server import EmbeddedServer, embedded_server
from feature_platform.errors import UserError
from feature_platform.importer import FileReport, ImportReport, Progress, import_bars
from feature_platform.plot import plot_features
from feature_platform.queries import queries
from feature_platform.refresh import refresh
from feature_platform.status import row_counts, symbol_status
from feature_platform.verify import verify

DATABASE = "demo"
NEWEST_ROWS = 6
PLOTTED_SYMBOLS = 3

_FILE_SYMBOL = re.compile(r"^(?P<symbol>[A-Za-z0-9]+)")


@dataclass(frozen=True)
class _Source:
    symbol: str
    file: Path


def run_demo(home: Path, files: Sequence[Path]) -> bool:
    """Run the demo on the embedded server in `home`; return whether all rows were right.

    files: bars in the format of Binance's monthly files, with the symbol in the file's name; none
        is a generated month of three symbols, with gaps, minutes without trades and late data.
    The database `demo` is dropped and created; no other database is changed. Raises UserError for
    a file that cannot be read.
    """
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: no such file")
    with tempfile.TemporaryDirectory() as directory:
        generated = [] if files else demo_bars.write_files(Path(directory))
        month = [_Source(_symbol(file), file) for file in files]
        month += [_Source(one.symbol, one.month) for one in generated]
        late = [_Source(one.symbol, one.late) for one in generated]
        server = embedded_server(home)
        server.start()
        with _new_database(server) as connection:
            return _show(connection, month, late, home / "demo.png")


def _new_database(server: EmbeddedServer) -> psycopg.Connection[TupleRow]:
    with connect(server.url("postgres")) as connection:
        name = sql.Identifier(DATABASE)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
    connection = connect(server.url(DATABASE))
    try:
        schema.apply(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _show(
    connection: psycopg.Connection[TupleRow],
    month: Sequence[_Source],
    late: Sequence[_Source],
    picture: Path,
) -> bool:
    _print(server_description(connection))
    _print(_imported("imported", _import(connection, month)))
    _print(_refreshed(connection, "refreshed"))
    if late:
        _print(_imported("late bars and corrections", _import(connection, late)))
        _print(_refreshed(connection, "repaired"))
    with console.progress_bar("verify") as progress:
        report = verify(connection, progress=progress)
    _print(console.verify_line(report))
    console.out.print()
    counts = row_counts(connection)
    symbols = symbol_status(connection)
    console.out.print(console.symbols_table(symbols, counts))
    console.out.print()
    console.out.print(_newest(connection))
    console.out.print()
    shown = [one.symbol for one in symbols if counts[one.symbol].features][:PLOTTED_SYMBOLS]
    if shown:
        _print(f"plot: {plot_features(connection, shown, picture)}")
    return report.mismatches == 0


def _import(connection: psycopg.Connection[TupleRow], sources: Sequence[_Source]) -> FileReport:
    reports: list[FileReport] = []
    with console.progress_bar("import") as progress:

        def advance(state: Progress) -> None:
            progress(int((len(reports) + state.share) * 100), len(sources) * 100)

        for source in sources:
            done = import_bars(connection, [source.file], symbol=source.symbol, progress=advance)
            reports.extend(done.files)
    return ImportReport(tuple(reports)).total


def _imported(label: str, total: FileReport) -> str:
    return (
        f"{label}: {total.inserted:,} bars new, {total.updated:,} corrected,"
        f" {total.unchanged:,} unchanged, {total.seconds:.2f} s,"
        f" {total.bars_per_second:,.0f} bars/s"
    )


def _refreshed(connection: psycopg.Connection[TupleRow], label: str) -> str:
    with console.progress_bar("refresh") as progress:
        done = refresh(connection, progress=progress)
    return (
        f"{label}: {done.rows_written:,} feature rows written, {done.seconds:.2f} s,"
        f" {done.rows_per_second:,.0f} rows/s"
    )


def _newest(connection: psycopg.Connection[Any]) -> Table:
    made = console.table(
        "UTC",
        "symbol",
        ">last_close",
        ">log_return",
        ">volume_z",
        ">vwap_gap",
        ">parkinson_vol",
        title="newest features",
    )
    for symbol, bucket, *values in connection.execute(
        queries["demo_newest"], {"rows": NEWEST_ROWS}
    ):
        numbers = ("NULL" if value is None else f"{value:.5g}" for value in values)
        made.add_row(f"{bucket.astimezone(UTC):%m-%d %H:%M}", symbol, *numbers)
    return made


def _symbol(file: Path) -> str:
    match = _FILE_SYMBOL.match(file.name)
    return match["symbol"] if match else file.name


def _print(line: str) -> None:
    console.out.print(line, highlight=False, soft_wrap=True)
