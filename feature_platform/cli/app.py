"""The command `feature-platform`.

Each command is a thin function. It imports its modules when it is called, so that `--help` and
the shell's completion stay quick, and raises UserError for mistakes that its user can correct.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from feature_platform import __version__
from feature_platform.cli.lake import lake
from feature_platform.cli.times import parse_time
from feature_platform.cli.views import views
from feature_platform.counted import counted
from feature_platform.errors import UserError, one_line

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    from feature_platform.embedded.server import EmbeddedServer

PROGRAM = "feature-platform"

_log = logging.getLogger("feature_platform.cli.app")  # `__main__` with `python -m`

# The error of a mistake on the command line: typer's own, or click's with an older typer.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _parse_symbol(text: str) -> str:
    """Read a symbol within its limits."""
    from feature_platform.symbols import check_symbol

    try:
        return check_symbol(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


_ONE_SYMBOL = typer.Option(parser=_parse_symbol, metavar="SYMBOL", help="Only this symbol.")
OneSymbol = Annotated[str | None, _ONE_SYMBOL]

_START = typer.Option(
    parser=parse_time, metavar="TIME", help="First minute, in UTC, such as 2026-02-01T12:00Z."
)
Start = Annotated[datetime | None, _START]
StartRequired = Annotated[datetime, _START]
End = Annotated[
    datetime | None,
    typer.Option(parser=parse_time, metavar="TIME", help="End; this minute is not included."),
]


def _column(contents: str) -> Any:
    return typer.Option(
        metavar="NAME",
        help=f"Column of the {contents}: its name, or its position, from 1, without a header.",
    )


app = typer.Typer(
    name=PROGRAM,
    help="Keep one-minute market features in PostgreSQL exactly up to date.",
    no_args_is_help=True,
    # A traceback that shows local variables shows passwords.
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="Reach and set up the database.", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(views, name="views")
app.add_typer(lake, name="lake")


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 a mistake of the user, 130 Ctrl-C."""
    logging.basicConfig(format="feature-platform: %(message)s")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, _exit)
    try:
        _check_arguments(sys.argv[1:])
        sys.exit(app(prog_name=PROGRAM, standalone_mode=False))
    except UserError as error:
        _fail(str(error), 2)
    except _UsageError as error:
        _fail_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if not _is_database_error(error):
            raise
        _log.debug("traceback of the error", exc_info=error)
        _fail(_database_message(error), 1)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    """Exit by SystemExit, so that the last process that uses the embedded server stops it."""
    sys.exit(128 + number)


def _check_arguments(arguments: list[str]) -> None:
    """Raise UserError for an argument that is not valid UTF-8, which no output can show."""
    from feature_platform.symbols import is_text

    for argument in arguments:
        if not is_text(argument):
            raise UserError(
                f"{argument!a} is not valid UTF-8: rename the file, or write it in UTF-8"
            )


def _fail(text: str, status: int) -> NoReturn:
    print(f"{PROGRAM}: {one_line(text)}", file=sys.stderr)
    sys.exit(status)


def _fail_usage(error: Any) -> NoReturn:
    """Print a mistake on the command line in one line, with the command whose help to read."""
    if type(error).__name__ == "NoArgsIsHelpError":  # a bare command, which shows its help
        print(error.message, end="")
        sys.exit(error.exit_code)
    command = PROGRAM if error.ctx is None else error.ctx.command_path
    _fail(f"{error.format_message().rstrip('.')} (see {command} --help)", error.exit_code)


@contextmanager
def database_session() -> Iterator[psycopg.Connection[TupleRow]]:
    """Connect to the platform's database, with the schema that this code needs."""
    from feature_platform.database import connect
    from feature_platform.schema import prepare

    with connect() as connection:
        prepare(connection)
        yield connection


def _is_database_error(error: Exception) -> bool:
    """Return whether an error comes from the database."""
    psycopg = sys.modules.get("psycopg")  # if it is not imported, it has raised no error
    return psycopg is not None and isinstance(error, psycopg.Error)


def _database_message(error: Any) -> str:
    """Return the server's message and hint, without its context."""
    parts = [error.diag.message_primary, error.diag.message_hint]
    return ". ".join(part.rstrip(".") for part in parts if part) or str(error) or repr(error)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"feature-platform {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log progress on stderr.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Apply the options that all commands share."""
    if verbose:
        logging.getLogger("feature_platform").setLevel(logging.INFO)
        _log.setLevel(logging.DEBUG)


@app.command("import")
def import_command(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files, directories or patterns; - is standard input. See docs/importing.md."
        ),
    ] = None,
    symbol: Annotated[
        str | None,
        typer.Option(help="Symbol of the bars, for files without a column of symbols."),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE",
            help="Zone of times without an offset, such as America/New_York; otherwise UTC.",
        ),
    ] = None,
    time: Annotated[
        Literal["open", "close"],
        typer.Option(help="Whether times are the start or the end of bars."),
    ] = "open",
    ticks: Annotated[bool, typer.Option("--ticks", help="Accept rows inside minutes.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let a later file correct an earlier one.")
    ] = False,
    known_at: Annotated[
        Literal["close", "now"],
        typer.Option(help="close: known when their minute closed. now: known since this import."),
    ] = "close",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the summary, and store nothing.")
    ] = False,
    skip_bad: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write bad rows to this new CSV, and store the others."),
    ] = None,
    column_ts: Annotated[str | None, _column("times")] = None,
    column_open: Annotated[str | None, _column("opens")] = None,
    column_high: Annotated[str | None, _column("highs")] = None,
    column_low: Annotated[str | None, _column("lows")] = None,
    column_close: Annotated[str | None, _column("closes")] = None,
    column_vol: Annotated[str | None, _column("volumes")] = None,
    column_symbol: Annotated[str | None, _column("symbols")] = None,
    exchange: Annotated[
        Literal["binance"] | None,
        typer.Option("--from", help="Load the exchange's archives of --symbol, not files."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="MONTH|DAY", help="First month or day, such as 2024-01; only with --from."
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(
            metavar="MONTH|DAY", help="Last month or day, by default yesterday; only with --from."
        ),
    ] = None,
) -> None:
    """Store the bars of files, each file whole or not at all.

    Exit status 1 if a file gave no bar.
    """
    if exchange is not None:
        if files or symbol is None or start is None:
            raise UserError("--from needs --symbol and --start, and no files")
        _import_archives(symbol, start, end, dry_run=dry_run, known_at=known_at)
        return
    if start is not None or end is not None:
        raise UserError("--start and --end go with --from binance")
    if not files:
        raise UserError("give files to import, or --from binance with --symbol and --start")

    from feature_platform.cli import console
    from feature_platform.importer import import_bars, view
    from feature_platform.importer.columns import ColumnMap
    from feature_platform.importer.importer import ImportStoppedError
    from feature_platform.importer.opening import find_files
    from feature_platform.importer.times import TimeRule

    columns = ColumnMap(
        ts=column_ts,
        open=column_open,
        high=column_high,
        low=column_low,
        close=column_close,
        vol=column_vol,
        symbol=column_symbol,
    )
    rule = TimeRule(zone=timezone, stamp=time, ticks=ticks)
    found, skipped = find_files(files)
    stopped: ImportStoppedError | None = None
    with database_session() as connection, console.progress_bar("import") as progress:
        try:
            report = import_bars(
                connection,
                found,
                symbol=symbol,
                columns=columns,
                rule=rule,
                overwrite=overwrite,
                known_at=known_at,
                dry_run=dry_run,
                skip_bad=skip_bad,
                progress=view.bar_of_files(found, progress),
            )
        except ImportStoppedError as error:
            report, stopped = error.report, error
    console.show(view.report_table(report))
    for line in view.report_lines(report, skipped, dry_run=dry_run, skip_bad=skip_bad):
        typer.echo(line)
    if stopped is not None:
        raise stopped
    if dry_run and report.total.bad and skip_bad is None:
        _fail("these files have bad rows: an import needs --skip-bad FILE", 2)
    useless = [one for one in report.files if not one.bars]
    if useless:
        _fail(view.nothing_stored(useless), 1)


def _import_archives(
    symbol: str, start: str, end: str | None, *, dry_run: bool, known_at: Literal["close", "now"]
) -> None:
    """Load an exchange's archives of one symbol, and show the summary."""
    from feature_platform.cli import console
    from feature_platform.importer import view
    from feature_platform.importer.archives import import_archives

    with database_session() as connection, console.progress_bar("import") as progress:
        report = import_archives(
            connection, symbol, start, end, dry_run=dry_run, known_at=known_at, progress=progress
        )
    console.show(view.report_table(report.imported))
    for line in view.archive_lines(report):
        typer.echo(line)
    if report.failed:
        _fail(f"not loaded: {counted(len(report.failed), 'archive')}; run the command again", 1)


@app.command("refresh")
def refresh_command(
    start: Start = None,
    end: End = None,
    force: Annotated[bool, typer.Option("--force", help="Recompute all rows.")] = False,
) -> None:
    """Bring the features and all feature views up to date with the bars, now."""
    from feature_platform.cli import console
    from feature_platform.refresh import refresh
    from feature_platform.views.catalog import refresh_views

    with database_session() as connection, console.progress_bar("refresh") as progress:
        report = refresh(connection, start, end, force=force, progress=progress)
        in_views = refresh_views(connection, start, end)
    typer.echo(
        f"refreshed: {counted(report.rows_written, 'row')} written in"
        f" {counted(report.slices, 'slice')},"
        f" {report.seconds:.2f} s, {report.rows_per_second:,.0f} rows/s"
    )
    if in_views:
        typer.echo(f"refreshed: {counted(in_views, 'row')} of feature views written")


@app.command("verify")
def verify_command(
    symbol: OneSymbol = None,
    start: Start = None,
    end: End = None,
) -> None:
    """Recompute every row from the bars and compare; exit status 1 if one differs."""
    from feature_platform.cli import console
    from feature_platform.verify import verify

    with database_session() as connection, console.progress_bar("verify") as progress:
        report = verify(connection, symbol=symbol, start=start, end=end, progress=progress)
    typer.echo(console.verify_line(report))
    if report.mismatches:
        console.show(console.mismatch_table(report))
        raise typer.Exit(1)


@app.command("skew")
def skew_command(
    since: Annotated[
        datetime,
        typer.Option(
            parser=parse_time, metavar="TIME", help="Rows that were served from this time on."
        ),
    ],
    sample: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, metavar="N", help="Only so many of them, at random."),
    ] = None,
) -> None:
    """Recompute logged rows from the bars known then; exit 1 if one is wrong, missing or extra."""
    from feature_platform.cli import console
    from feature_platform.skew import skew

    with database_session() as connection, console.progress_bar("skew") as progress:
        report = skew(connection, since=since, sample=sample, progress=progress)
    typer.echo(console.skew_line(report, since))
    for line in console.skew_lines(report):
        typer.echo(line)
    if not report.is_right:
        raise typer.Exit(1)


@app.command("why")
def why_command(
    symbol: Annotated[
        str,
        typer.Argument(
            parser=_parse_symbol, metavar="SYMBOL", help="The row's symbol, such as BTC/USDT."
        ),
    ],
    minute: Annotated[
        datetime,
        typer.Argument(
            parser=parse_time,
            metavar="MINUTE",
            help="The row's minute, in UTC without an offset, such as 2026-02-01T12:00; a date is"
            " its midnight. In a view, the row is of the bucket that holds the minute.",
        ),
    ],
    view: Annotated[
        str, typer.Option(metavar="NAME", help="A feature view, by default features_1m.")
    ] = "features_1m",
) -> None:
    """Show a row, its earlier versions, and the versions of its bars."""
    from feature_platform.cli.history import show_why
    from feature_platform.why import why

    with database_session() as connection:
        show_why(why(connection, symbol, minute, view))


@app.command("status")
def status_command(
    counts: Annotated[
        bool, typer.Option(help="Count bars and rows, which reads whole indexes.")
    ] = True,
) -> None:
    """Show the rows of each symbol, the refresh policy and the database."""
    from feature_platform import status
    from feature_platform.cli import console
    from feature_platform.clock import SimulatedClock
    from feature_platform.database import connect_briefly, server_description
    from feature_platform.embedded.server import embedded_server
    from feature_platform.heartbeat import list_heartbeats
    from feature_platform.schema import prepare
    from feature_platform.settings import get_settings

    with connect_briefly() as brief:
        connection = brief.connection
        description = server_description(connection)
        brief.lift()  # an upgrade may take longer
        prepare(connection)
        brief.limit()
        symbols = status.symbol_status(connection)
        policy = status.policy_status(connection)
        runners = status.policy_runners(connection)
        states = status.view_states(connection)
        feeds = list_heartbeats(connection)
        brief.lift()
        rows = status.row_counts(connection) if counts else {}
    typer.echo(f"database: {description}")
    if get_settings().database_url is None:
        typer.echo(console.embedded_line(embedded_server(get_settings().home).is_kept))
    if isinstance(clock := get_settings().clock, SimulatedClock):
        typer.echo(f"clock: simulated, {clock.now():%F %T} UTC, {clock.speed:g} times as fast")
    lines = console.recorder_lines(feeds) + console.policy_lines(policy, runners)
    for line in [*lines, *console.view_lines(states)]:
        typer.echo(line)
    if symbols:
        typer.echo()
        console.show(
            console.symbols_table(symbols, rows), console.symbols_table(symbols, rows, first=False)
        )
    else:
        typer.echo("no bars yet: `feature-platform import FILE --symbol SYMBOL`")


@app.command("top")
def top_command(
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two updates.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame, of all symbols.")] = False,
) -> None:
    """Show live the lag, waiting rows and gaps of each symbol, the worst first."""
    from feature_platform.cli.top import run_top

    run_top(interval, once)


@app.command("gaps")
def gaps_command(
    symbol: OneSymbol = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE",
            help="Only open, filled, quiet, unavailable or not_recorded; may be repeated.",
        ),
    ] = None,
) -> None:
    """Find all missing minutes up to now, and list them with their reasons."""
    from feature_platform.cli import console
    from feature_platform.gaps import check_known, find_all_gaps, list_gaps, parse_states

    states = parse_states(state or [])
    with database_session() as connection:
        if symbol is not None:
            check_known(connection, symbol)
        with console.progress_bar("account for minutes") as progress:
            find_all_gaps(connection, progress)
        gaps = list_gaps(connection, symbol, states)
    complete, *short = console.gaps_tables(gaps)
    if console.show(complete, *short) in short:
        for line in console.gap_errors(gaps):
            typer.echo(line)
    typer.echo(console.gaps_line(gaps))


@app.command("backfill")
def backfill_command(
    symbol: Annotated[
        str,
        typer.Option(
            parser=_parse_symbol,
            metavar="SYMBOL",
            help="Symbol by ccxt's name, such as BTC/USDT, or kraken:BTC/USD.",
        ),
    ],
    start: StartRequired,
    end: End = None,
) -> None:
    """Fetch bars over REST and store them.

    Exit status 1 if the exchange did not answer, or answered without a valid bar.
    """
    from feature_platform.backfill import backfill
    from feature_platform.cli import console
    from feature_platform.exchange.client import Exchanges, ExchangeUnavailable
    from feature_platform.origin import exchange_settings

    with (
        database_session() as connection,
        Exchanges(exchange_settings(connection, symbol=symbol)) as exchanges,
    ):
        exchange = exchanges.of(symbol)
        try:
            until = end or exchange.now()
        except ExchangeUnavailable as error:
            _fail(str(error), 1)
        whole = (until - start).total_seconds()
        with console.progress_bar("backfill") as progress:
            report = backfill(
                connection,
                exchange,
                symbol,
                start,
                until,
                progress=lambda to: progress(int((to - start).total_seconds()), int(whole)),
            )
    typer.echo(console.backfill_line(report))
    for row in report.rejected:
        typer.echo(f"rejected: {console.time_text(row.minute)}: {row.reason}: {row.text}", err=True)
    if report.error is not None:
        _fail(report.error, 1)
    if report.rejected_rows and not report.fetched:
        rows = counted(report.rejected_rows, "row")
        _fail(f"{exchange.name} answered with {rows}, and none is a bar", 1)


@app.command("forget")
def forget_command(
    symbol: Annotated[str, typer.Argument(parser=_parse_symbol, metavar="SYMBOL")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete all data of a symbol; only the owner of the schema may.

    The data are its bars, features, gaps, marks for a refresh, and the state of its stream.
    """
    from feature_platform.forget import forget

    if not yes:
        typer.confirm(f"Delete all bars and features of {symbol}?", abort=True)
    with database_session() as connection:
        gone = forget(connection, symbol)
    rows = f"{counted(gone.bars, 'bar')} and {counted(gone.features, 'feature row')}"
    typer.echo(f"forgotten: {symbol}, {rows}")


@app.command("record")
def record_command(
    days: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Days of history of a symbol without bars."),
    ] = 2,
) -> None:
    """Store the configured symbols' bars from the exchange's stream as they close."""
    from feature_platform.recorder.recorder import run_recorder

    logging.getLogger("feature_platform").setLevel(logging.INFO)
    if not run_recorder(timedelta(days=days)):
        raise typer.Exit(1)


@app.command("dev")
def dev_command(
    port: Annotated[int, typer.Option(metavar="PORT", help="Port of Dagster's UI.")] = 3000,
    exchange_port: Annotated[
        int, typer.Option(metavar="PORT", help="Port of the simulated exchange.")
    ] = 8090,
    days: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Days of history of a symbol without bars."),
    ] = 2,
    two_exchanges: Annotated[
        bool,
        typer.Option(
            "--two-exchanges", help="Simulate a second exchange, binanceus, on the next port."
        ),
    ] = False,
) -> None:
    """Run everything until Ctrl-C: database, simulated exchange, recorder, worker, Dagster's UI."""
    from feature_platform.dev.run import run_dev

    verbose = logging.getLogger("feature_platform").level == logging.INFO
    raise typer.Exit(run_dev(port, exchange_port, days, two=two_exchanges, verbose=verbose))


@app.command("demo")
def demo_command(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Binance's monthly files of bars; by default a generated month."),
    ] = None,
) -> None:
    """Import, refresh, repair and verify in a database of its own, with figures of each step."""
    from feature_platform.dev.demo import run_demo
    from feature_platform.settings import get_settings

    if not run_demo(get_settings().home, files or []):
        raise typer.Exit(1)


@app.command("worker")
def worker_command() -> None:
    """Keep features up to date until SIGTERM or Ctrl-C; the current step is finished first."""
    from feature_platform.worker import run_worker

    logging.getLogger("feature_platform").setLevel(logging.INFO)
    run_worker()


@app.command("health")
def health_command(
    service: Annotated[
        Literal["recorder", "worker", "daemon"],
        typer.Argument(help="The service to check; the daemon is Dagster's."),
    ],
) -> None:
    """Check that a service works; if it does not, print the reason, with exit status 1."""
    from feature_platform.health import problem_of

    problem = problem_of(service)
    if problem is not None:
        _fail(problem, 1)


@app.command("serve")
def serve_command(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to serve at.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port, 0 for a free one.")
    ] = 8000,
) -> None:
    """Serve features over HTTP until SIGTERM or Ctrl-C; open answers are finished first."""
    from feature_platform.service.server import run_service

    logging.getLogger("feature_platform").setLevel(logging.INFO)
    run_service(host, port)


@app.command("simulate")
def simulate_command(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to serve at.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port, 0 for a free one.")
    ] = 8090,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the random bars and faults.")] = 0,
    symbols: Annotated[
        str | None,
        typer.Option(
            metavar="SYMBOLS", help="Separated by commas; by default those of the settings."
        ),
    ] = None,
    faults: Annotated[
        str | None,
        typer.Option(metavar="JSON|@FILE", help="List of faults; see docs/simulator.md."),
    ] = None,
    bars: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Serve the bars of this file.")
    ] = None,
    symbol: Annotated[
        str | None,
        typer.Option(parser=_parse_symbol, metavar="SYMBOL", help="Symbol of the bars of --bars."),
    ] = None,
    update_seconds: Annotated[
        float,
        typer.Option(min=0.01, metavar="SECONDS", help="Time between updates of the open minute."),
    ] = 1.0,
    log_requests: Annotated[
        bool,
        typer.Option(
            "--log-requests", help="Log every request, not only those with a fault or over a limit."
        ),
    ] = False,
) -> None:
    """Run a simulated exchange with Binance's REST and streams until SIGTERM or Ctrl-C."""
    from feature_platform.simulator.server import make_exchange

    logging.getLogger("feature_platform").setLevel(logging.DEBUG if log_requests else logging.INFO)
    exchange = make_exchange(
        host=host,
        port=port,
        seed=seed,
        symbols=symbols,
        faults=faults,
        bars=bars,
        symbol=symbol,
        update_seconds=update_seconds,
    )
    typer.echo(f"simulating Binance at {exchange.url}: {', '.join(exchange.truth.markets)}")
    exchange.run()


@db.command("url")
def db_url() -> None:
    """Print the URL of the database, its password included."""
    from feature_platform.database import database_url
    from feature_platform.embedded.server import embedded_server
    from feature_platform.settings import get_settings

    typer.echo(database_url())
    settings = get_settings()
    if settings.database_url is None and not embedded_server(settings.home).is_kept:
        typer.echo(
            "feature-platform: this is the embedded server, and it runs only while a"
            " feature-platform process does: keep it running with `feature-platform db start`",
            err=True,
        )


@db.command("start")
def db_start() -> None:
    """Start the embedded server; it stays up until `feature-platform db stop`."""
    server = _embedded_server("start")
    server.keep()
    with database_session():  # sets up its schema
        pass
    typer.echo(f"the database runs until `feature-platform db stop`: {server.url()}")


@db.command("stop")
def db_stop() -> None:
    """Stop the embedded server, once no other process uses it."""
    server = _embedded_server("stop")
    if server.stop():
        typer.echo(f"the database in {server.home} is stopped")
    else:
        typer.echo(
            f"the database in {server.home} stops with the last process that uses it"
            " (such as a recorder, a worker or `make dev`)"
        )


def _embedded_server(command: str) -> EmbeddedServer:
    """Return the embedded server; raise UserError if another database is configured."""
    from feature_platform.embedded.server import embedded_server
    from feature_platform.settings import PREFIX, get_settings

    settings = get_settings()
    if settings.database_url is not None:
        raise UserError(
            f"`{PROGRAM} db {command}` is for the embedded server, and {PREFIX}DATABASE_URL names"
            f" another database: unset it, or {command} that server by its own means"
        )
    return embedded_server(settings.home)


@db.command(
    "psql", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
def db_psql(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Arguments of psql, such as -- -c 'SELECT 1'.", metavar="-- ARGUMENTS"),
    ] = None,
) -> None:
    """Open psql, PostgreSQL's shell, on the database."""
    from feature_platform.cli.psql import run_psql

    raise typer.Exit(run_psql(arguments or []))


@db.command("apply")
def db_apply(
    simulated: Annotated[
        bool | None,
        typer.Option(
            "--simulated/--real",
            help="Whether it is for simulated bars. By default an existing database stays as it"
            " is, and a new one is real.",
        ),
    ] = None,
) -> None:
    """Set up the database, or bring it up to date; may be run again at any time."""
    from feature_platform import schema
    from feature_platform.database import connect, server_description
    from feature_platform.roles import missing_roles

    with connect() as connection:
        schema.apply(connection, simulated=simulated)
        typer.echo(f"set up: {server_description(connection)}")
        missing, user = missing_roles(connection), connection.info.user
    if missing:
        typer.echo(
            f"feature-platform: {user} may not create roles, so there is no {', '.join(missing)}:"
            f" an administrator has to run {schema.schema_files()[0]}, then apply again",
            err=True,
        )


@db.command("logins")
def db_logins() -> None:
    """Let the roles log in, each with its password from FEATURE_PLATFORM_<ROLE>_PASSWORD."""
    from feature_platform.database import connect
    from feature_platform.roles import set_logins

    with connect() as connection:
        names = set_logins(connection)
    typer.echo(f"can log in: {', '.join(names)}")


if __name__ == "__main__":
    main()
