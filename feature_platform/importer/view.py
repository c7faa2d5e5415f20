"""The summary of an import on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from feature_platform.cli import console
from feature_platform.importer.importer import FileReport, ImportReport, Progress

if TYPE_CHECKING:
    from feature_platform.importer.archives import ArchiveReport

# The share of a file's time that goes into reading it; the rest is the database's.
_READING = 0.4


def bar_of_files(
    paths: Sequence[Path], progress: Callable[[int, int], None]
) -> Callable[[Progress], None]:
    """Return the function that moves a bar on over all files, each by its size."""
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
    """Return the counts of every file's rows, and how the file was read."""
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
    """Yield what the table does not hold: notes, and the bad rows."""
    many = len(report.files) > 1
    for one in report.files:
        for note in one.notes:
            yield f"{one.path}: {note}" if many else note
    for path in skipped:
        yield f"no file of bars, left out: {path}"
    bad = report.total.bad
    if dry_run:
        for one in report.files:
            for row in one.examples:
                yield f"bad row: {row.file}:{row.line}: {row.reason}"
        shown = sum(len(one.examples) for one in report.files)
        if bad > shown:
            yield f"bad rows: {bad:,} in all"
        yield "dry run: nothing was stored"
    elif bad:
        yield f"bad rows, left out: {bad:,}, in {skip_bad}"


def archive_lines(report: ArchiveReport) -> Iterator[str]:
    """Yield what became of the archives that were asked for."""
    yield (
        f"archives: {len(report.imported.files):,} imported, {report.present:,} periods complete"
        f" before, {len(report.absent):,} not published, {len(report.failed):,} failed"
    )
    for name in report.absent:
        yield f"not published: {name}"
    for name, reason in report.failed.items():
        yield f"failed: {name}: {reason}"


def nothing_stored(files: Sequence[FileReport]) -> str:
    """Return why files gave no bar, for the message of exit status 1."""
    one = files[0]
    if not one.rows:
        reason = "the file has no rows"
    elif one.bad == one.rows:
        reason = "every row is bad"
    elif one.unclosed == one.rows:
        reason = "every bar is of a minute that is not over"
    else:
        reason = (
            f"of {one.rows:,} rows {one.bad:,} are bad, {one.empty:,} without values and"
            f" {one.unclosed:,} of minutes that are not over"
        )
    more = f" (and {len(files) - 1:,} other files)" if len(files) > 1 else ""
    return f"{one.path}: no bar was stored: {reason}{more}"


def _cells(report: FileReport) -> list[str]:
    names = list(report.spans)
    counts = (report.rows, report.inserted, report.updated, report.unchanged, report.duplicates)
    return [
        _shown(names[0]) if len(names) == 1 else f"{len(names):,} symbols",
        *(f"{count:,}" for count in (*counts, report.bad, report.empty, report.unclosed)),
        console.moment(min((first for first, _ in report.spans.values()), default=None)),
        console.moment(max((last for _, last in report.spans.values()), default=None)),
        f"{report.seconds:.2f}",
        f"{report.bars_per_second:,.0f}",
        report.interval,
        report.times,
        report.layout,
    ]


def _shown(symbol: str) -> str:
    return symbol if symbol.isprintable() else repr(symbol)
