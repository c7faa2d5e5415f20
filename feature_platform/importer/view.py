"""The summary of an import on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from feature_platform.cli import console
from feature_platform.counted import counted
from feature_platform.importer.importer import FileReport, ImportReport, Progress

if TYPE_CHECKING:
    from feature_platform.importer.archives import ArchiveReport

# The share of a file's time that reading takes; the rest is storing.
_READING = 0.4


def bar_of_files(
    paths: Sequence[Path], progress: Callable[[int, int], None]
) -> Callable[[Progress], None]:
    """Return a function that advances a progress bar over all files, weighted by their sizes."""
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in paths}
    total = sum(sizes[path] for path in paths)
    finished = 0

    def advance(state: Progress) -> None:
        nonlocal finished
        share = 1.0 if state.phase == "stored" else state.share * _READING
        progress(finished + int(sizes[state.path] * share), total)
        if state.phase == "stored":
            finished += sizes[state.path]

    return advance


def report_table(report: ImportReport) -> Table:
    """Return a table of each file's counts, interval, times and layout."""
    made = console.table(
        *("file", "symbol", ">rows", ">new", ">corrected", ">unchanged", ">duplicates", ">bad"),
        *(">empty", ">not closed", "first bar (UTC)", "last bar (UTC)", ">seconds", ">bars/s"),
        *("interval", "times", "layout"),
    )
    for one in report.files:
        made.add_row(str(one.path), *_cells(one))
    if len(report.files) > 1:
        made.add_row("total", *_cells(report.total))
    return made


def report_lines(
    report: ImportReport, skipped: Sequence[Path], *, dry_run: bool, skip_bad: Path | None
) -> Iterator[str]:
    """Yield the lines below the table: notes, ignored files and bad rows."""
    many = len(report.files) > 1
    for one in report.files:
        for note in one.notes:
            yield f"{one.path}: {note}" if many else note
    yield from _flag_lines(report)
    for path in skipped:
        yield f"not a file of bars, ignored: {path}"
    bad = report.total.bad
    if dry_run:
        for one in report.files:
            for row in one.examples:
                yield f"bad row: {row.file}:{row.line}: {row.reason}"
        shown = sum(len(one.examples) for one in report.files)
        if bad > shown:
            yield f"bad rows in total: {bad:,}"
        yield "dry run: nothing was stored"
    elif bad:
        yield f"{bad:,} bad {'row was' if bad == 1 else 'rows were'} written to {skip_bad}"


def _flag_lines(report: ImportReport) -> Iterator[str]:
    """Yield a line where not all bars of an import are known at close."""
    total = report.total
    if total.unflagged:
        yield (
            f"known at close: {total.bars - total.unflagged:,} of {counted(total.bars, 'bar')};"
            " the others are known since they were stored, as all bars from the first live one on"
            " are (docs/importing.md)"
        )


def archive_lines(report: ArchiveReport) -> Iterator[str]:
    """Yield the outcome of loading archives."""
    yield (
        f"archives: {len(report.imported.files):,} imported, {len(report.absent):,} not published,"
        f" {len(report.failed):,} failed; complete before: {counted(report.present, 'day')}"
    )
    yield from _flag_lines(report.imported)
    for name in report.absent:
        yield f"not published: {name}"
    for name, reason in report.failed.items():
        yield f"failed: {name}: {reason}"


def nothing_stored(files: Sequence[FileReport]) -> str:
    """Return the reason why no bar of the files was stored, for the message of exit status 1."""
    one = files[0]
    if not one.rows:
        reason = "the file has no rows"
    elif one.bad == one.rows:
        reason = "every row is bad"
    elif one.unclosed == one.rows:
        reason = "every bar is of a minute that has not ended"
    else:
        reason = (
            f"{counted(one.rows, 'row')}: {one.bad:,} bad, {one.empty:,} without values,"
            f" {one.unclosed:,} of minutes that have not ended"
        )
    more = f" (and {counted(len(files) - 1, 'other file')})" if len(files) > 1 else ""
    return f"{one.path}: no bar was stored: {reason}{more}"


def _cells(report: FileReport) -> list[str]:
    names = list(report.spans)
    counts = (report.rows, report.inserted, report.updated, report.unchanged, report.duplicates)
    return [
        _shown(names[0]) if len(names) == 1 else f"{len(names):,} symbols",
        *(f"{count:,}" for count in (*counts, report.bad, report.empty, report.unclosed)),
        console.time_text(min((first for first, _ in report.spans.values()), default=None)),
        console.time_text(max((last for _, last in report.spans.values()), default=None)),
        f"{report.seconds:.2f}",
        f"{report.bars_per_second:,.0f}",
        report.interval,
        report.times,
        report.layout,
    ]


def _shown(symbol: str) -> str:
    return symbol if symbol.isprintable() else repr(symbol)
