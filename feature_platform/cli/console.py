"""Output of the command line: tables on stdout, progress on stderr."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from feature_platform.counted import counted
from feature_platform.errors import one_line
from feature_platform.gaps import STATES, Gap
from feature_platform.heartbeat import StoredHeartbeat
from feature_platform.skew import SkewReport
from feature_platform.status import Counts, PolicyStatus, SymbolStatus, ViewState
from feature_platform.verify import VerifyReport

if TYPE_CHECKING:  # ccxt takes long to import
    from feature_platform.backfill import BackfillReport

# A table is as wide as it needs to be: a line that the terminal wraps can be read, a cell that is
# cut off cannot. Symbols are shown as they are: rich must not read their brackets as markup.
# Without a height, rich cuts the lines of a terminal with TERM=dumb at 80 columns.
out = Console(width=10_000, height=25, markup=False, emoji=False)
err = Console(markup=False, emoji=False, stderr=True)

# The least width of a column whose texts are wrapped.
_LEAST_TEXT = 30


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr; yields the function to call with (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def table(*columns: str, title: str | None = None, wrap_last: bool = False) -> Table:
    """Make a plain table; a column whose name begins with ">" is aligned to the right.

    wrap_last: wrap texts of the last column in a narrow terminal.
    """
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns, 1):
        made.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=not (wrap_last and number == len(columns)),
            overflow="fold",  # a cell that is cut off cannot be read
        )
    return made


def show(*tables: Table, width: int | None = None) -> Table:
    """Print the first of these tables that fits the terminal, and return it.

    tables: the same rows with fewer and fewer columns. Where none fits, each row of the first one
        is printed as lines of name and value.
    width: the columns of an output that is no terminal, by default any number.
    """
    width = shutil.get_terminal_size().columns if out.is_terminal else width or out.width
    for made in tables:
        needed = out.measure(made).maximum
        if not made.columns[-1].no_wrap:
            longest = max(map(len, map(str, made.columns[-1].cells)), default=0)
            needed -= max(longest - _LEAST_TEXT, 0)
        if needed <= width:
            out.print(made, width=width)
            return made
    made = tables[0]
    names = [str(column.header) for column in made.columns]
    longest = max(map(len, names))
    for number, row in enumerate(zip(*(column.cells for column in made.columns), strict=True)):
        if number:
            out.print()
        for label, cell in zip(names, row, strict=True):
            out.print(f"{label:{longest}}  {cell}", highlight=False)
    return made


def symbols_table(
    symbols: list[SymbolStatus], counts: dict[str, Counts], *, first: bool = True
) -> Table:
    """Show each symbol's bars and features; without counts, without their columns.

    first: show the time of the first bar, too.
    """
    times = ("first bar (UTC)", "last bar (UTC)") if first else ("last bar (UTC)",)
    numbers = (">bars", ">features") if counts else ()
    made = table("symbol", *times, *numbers, ">waiting", ">lag")
    for one in symbols:
        count = counts.get(one.symbol, Counts(0, 0))
        made.add_row(
            name(one.symbol),
            *((time_text(one.first_bar),) if first else ()),
            time_text(one.last_bar),
            *((f"{count.bars:,}", f"{count.features:,}") if counts else ()),
            f"{one.rows_dirty:,}",
            "-" if one.lag is None else duration(one.lag),
        )
    return made


def embedded_line(is_kept: bool) -> str:
    """Describe how long the embedded server runs."""
    if is_kept:
        return "embedded server: runs until `feature-platform db stop`"
    return (
        "embedded server: runs only while a feature-platform process does;"
        " `feature-platform db start` keeps it running"
    )


def runner_text(policy: PolicyStatus, runners: Sequence[str]) -> str:
    """Return the processes that run the policy now, or the remedy if none does."""
    if policy.runs_in != "worker":
        return f"run by {policy.runs_in}" + (" and a worker" if "worker" in runners else "")
    if "worker" in runners:
        return "run by a worker"
    return "no worker is running, start `feature-platform worker`"


def policy_lines(policy: PolicyStatus | None, runners: Sequence[str] = ()) -> list[str]:
    """Describe the refresh policy and its last run in a few lines.

    runners: the kinds of processes that run the policy now.
    """
    if policy is None:
        return ["policy: none, features change only by `feature-platform refresh`"]
    rule = (
        f"policy: runs every {duration(policy.schedule_interval)}, refreshes rows older than"
        f" {duration(policy.end_offset)}, the last {duration(policy.start_offset)} first;"
        f" {runner_text(policy, runners)}"
    )
    lines = [rule]
    if policy.problem is not None:
        lines.append(f"problem: {policy.problem}")
    if policy.last_start is None:
        lines.append("last run: none yet")
    else:
        if policy.last_duration is None:
            took = "interrupted"
        else:
            took = f"{'running for' if policy.running else 'took'} {duration(policy.last_duration)}"
        lines.append(
            f"last run: {time_text(policy.last_start)} UTC, {took},"
            f" {counted(policy.last_rows_written or 0, 'row')} written"
            + (f"; refreshes after writes: {policy.last_wakes:,}" if policy.last_wakes else "")
        )
    if policy.oldest_dirty_age is not None:
        lines.append(
            f"waiting for refresh: {counted(policy.rows_dirty, 'row')},"
            f" the oldest for {duration(policy.oldest_dirty_age)}"
        )
    if policy.last_error is not None and policy.last_error_at is not None:
        error = one_line(policy.last_error)
        lines.append(f"last error: {time_text(policy.last_error_at)} UTC, {error}")
    return lines


def view_lines(views: Sequence[ViewState]) -> list[str]:
    """Sum up the feature views in a line, and each that has failed or waits in another."""
    if not views:
        return []
    states = Counter("complete, waiting" if one.state == "waiting" else one.state for one in views)
    counts = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
    waits = [one for one in views if one.symbols_dirty and one.state != "building"]
    lines = [f"views: {counts}" + (f"; {len(waits):,} with dirty buckets" if waits else "")]
    lines += [
        f"view {one.name} version {one.version}: {one.state}: {one_line(one.error)}"
        for one in views
        if one.error is not None
    ]
    return lines


def recorder_lines(feeds: Sequence[StoredHeartbeat]) -> list[str]:
    """Sum up the recorder's symbols in a line, and its newest error in another; none without it."""
    if not feeds:
        return []
    states = Counter(feed.shown_state for feed in feeds)
    counts = ", ".join(f"{states[state]:,} {state}" for state in sorted(states))
    beat = duration(timedelta(seconds=min(feed.age for feed in feeds)))
    lines = [f"recorder: {counted(len(feeds), 'symbol')}, {counts}; last heartbeat {beat} ago"]
    healthy = ("live", "not_recorded")
    failed = [feed for feed in feeds if feed.state not in healthy and feed.last_error]
    if failed:
        lines.append(f"recorder: {name(failed[0].symbol)}: {failed[0].last_error}")
    return lines


def verify_line(report: VerifyReport) -> str:
    """Sum up a verification: all equal, or how many rows are wrong and the first of them."""
    waiting = f"; not compared, waiting for refresh: {report.pending:,}" if report.pending else ""
    if not report.mismatches:
        of = f"{counted(report.symbols, 'symbol')}{_views(report)}"
        return f"verified: {counted(report.rows, 'row')} of {of} checked, all equal{waiting}"
    first = report.examples[0]
    column = first.column if first.view == "features_1m" else f"{first.view}.{first.column}"
    where = f"{name(first.symbol)} {first.bucket} {column}"
    are = "is" if report.mismatches == 1 else "are"
    wrong = f"{report.mismatches:,} of {counted(report.rows, 'row')} {are} wrong"
    return f"verified: {wrong}: {where}{waiting}"


def _views(report: VerifyReport) -> str:
    if not report.views:
        return ""
    return f" in features_1m and {counted(report.views, 'view')}"


def mismatch_table(report: VerifyReport) -> Table:
    """Show the first values that differ from those recomputed from the bars."""
    made = table("view", "symbol", "bucket", "column", ">stored", ">recomputed")
    for one in report.examples:
        stored, expected = value_text(one.stored), value_text(one.expected)
        made.add_row(one.view, name(one.symbol), one.bucket, one.column, stored, expected)
    return made


def skew_line(report: SkewReport, since: datetime) -> str:
    """Sum up a comparison of served rows: how many are wrong, and in which way.

    since: the time from which on rows were compared.
    """
    if not report.rows and not report.not_kept:
        return (
            f"skew: no served rows were logged since {time_text(since)} UTC: the model service logs"
            " the rows that it serves only where FEATURE_PLATFORM_SERVE_LOG is set"
        )
    rest = ""
    if old := report.not_kept - report.replaced:
        rest += f"; older than the history: {old:,}"
    if report.replaced:
        rest += f"; of views or versions that were replaced or dropped: {report.replaced:,}"
    return (
        f"skew: {counted(report.rows, 'served row')} computed again: {report.mismatch:,} mismatch,"
        f" {report.missing:,} missing, {report.extra:,} extra{rest}"
    )


def skew_lines(report: SkewReport) -> list[str]:
    """Give each of the first wrong rows a few lines: its place, its numbers, and its values."""
    lines = []
    for one in report.examples:
        lines.append(f"{one.problem}: {one.view} {name(one.symbol)} {time_text(one.bucket)} UTC")
        lines.append(
            f"  first served at {time_text(one.served_at)} UTC; refresh {one.refresh_no}, the"
            f" symbol's last {one.symbol_no}"
        )
        if one.column is not None:
            served, computed = value_text(one.served), value_text(one.computed)
            lines.append(f"  {one.column}: served {served}, computed {computed}")
    return lines


def gaps_tables(gaps: Sequence[Gap]) -> list[Table]:
    """Show gaps, with the attempts and the last error of the requests for them.

    The second table is without the state of the stream and without errors; the third one is
    without attempts, too.
    """
    tables = []
    for more in ((">attempts", "stream", "last error"), (">attempts",), ()):
        made = table("symbol", "from (UTC)", "until (UTC)", ">minutes", "state", *more)
        for gap in gaps:
            reasons = (str(gap.attempts), gap.feed or "-", gap.last_error or "")
            made.add_row(
                name(gap.symbol),
                time_text(gap.start),
                time_text(gap.end),
                f"{_minutes(gap):,}",
                gap.state,
                *reasons[: len(more)],
            )
        tables.append(made)
    return tables


def gap_errors(gaps: Sequence[Gap]) -> list[str]:
    """Give each error of the requests for gaps one line, with the last gap that had it."""
    last = {gap.last_error: gap for gap in gaps if gap.last_error is not None}
    return [
        f"last error: {name(gap.symbol)} {time_text(gap.start)}: {one_line(error)}"
        for error, gap in last.items()
    ]


def gaps_line(gaps: Sequence[Gap]) -> str:
    """Sum gaps up by their state."""
    sums = []
    for state in STATES:
        some = [gap for gap in gaps if gap.state == state]
        if some:
            minutes = counted(sum(map(_minutes, some)), "minute")
            sums.append(f"{minutes} {state} in {counted(len(some), 'gap')}")
    return ", ".join(sums) or "no minute is missing"


def _minutes(gap: Gap) -> int:
    return int((gap.end - gap.start).total_seconds()) // 60


def backfill_line(report: BackfillReport) -> str:
    """Sum up a backfill."""
    stored = report.stored
    return (
        f"backfilled {report.symbol}: {counted(report.fetched, 'bar')} fetched,"
        f" {stored.inserted:,} new, {stored.updated:,} corrected, {stored.unchanged:,} unchanged;"
        f" {counted(report.quiet_minutes, 'minute')} without trades,"
        f" {counted(report.rejected_rows, 'row')} rejected"
    )


def time_text(value: datetime | None) -> str:
    """Show a time in UTC, to the minute, or to the second if it has seconds."""
    if value is None:
        return "-"
    utc = value.astimezone(UTC)
    return utc.strftime("%Y-%m-%d %H:%M:%S" if utc.second else "%Y-%m-%d %H:%M")


def duration(value: timedelta) -> str:
    """Show a duration in its largest unit, such as "38 ms", "42 s", "1 min", "3.5 h", "268 d"."""
    seconds = value.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if abs(seconds) >= size:
            amount = seconds / size
            return f"{amount:,.0f} {unit}" if abs(amount) >= 100 else f"{amount:.3g} {unit}"
    return f"{seconds * 1000:.0f} ms"


def size(count: int) -> str:
    """Show a number of bytes, such as "74 MB"; 1 MB is a million bytes."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def name(symbol: str) -> str:
    """Show a symbol as it is, or quoted if a terminal cannot show it."""
    return symbol if symbol.isprintable() else repr(symbol)


def value_text(value: float | None) -> str:
    """Return a number as the shortest text that reads back as the same number."""
    return "NULL" if value is None else repr(value).removesuffix(".0")
