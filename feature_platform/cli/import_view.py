"""What the command line shows of an import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from feature_platform.cli import console
from feature_platform.importer import FileReport, ImportReport, Progress

# What part of a file's time goes into reading it; the rest is the database's.
_READING = 0.4


def bar_of_files(
    paths: Sequence[Path], progress: Callable[[int, int], None]
) -> Callable[[Progress], None]:
    """Return the function that moves a bar on over all files, each by its size."""
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in paths}
    total = sum(sizes[path] for path in paths)
    finished = 0

    def tell(state: Progress) -> None:
        nonlocal finished
        share = 1.0 if state.phase == "stored" else state.share * _READING
        progress(finished + int(sizes[state.path] * share), total)
        if state.phase == "stored":
            finished += sizes[state.path]

    return tell


def report_table(report: ImportReport) -> Table:
    """Show what became of the rows of every file."""
    made = console.table(
        *("file", "symbol", ">rows", ">new", ">corrected", ">unchanged", ">duplicates", ">bad"),
        *("first bar (UTC)", "last bar (UTC)", ">seconds", ">bars/s"),
    )
    for one in report.files:
        made.add_row(str(one.path), *_cells(one))
    if len(report.files) > 1:
        made.add_row("total", *_cells(report.total))
    return made


def _cells(report: FileReport) -> list[str]:
    names = list(report.spans)
    counts = (report.rows, report.inserted, report.updated, report.unchanged)
    return [
        _shown(names[0]) if len(names) == 1 else f"{len(names):,} symbols",
        *(f"{count:,}" for count in (*counts, report.duplicates, report.bad)),
        console.moment(min((first for first, _ in report.spans.values()), default=None)),
        console.moment(max((last for _, last in report.spans.values()), default=None)),
        f"{report.seconds:.2f}",
        f"{report.bars_per_second:,.0f}",
    ]


def _shown(symbol: str) -> str:
    return symbol if symbol.isprintable() else repr(symbol)
