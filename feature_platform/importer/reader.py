"""Read files of bars in batches: CSV, JSON, Parquet or Feather, compressed or not."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feature_platform.bar_rules import BadRow, Batch
from feature_platform.importer.columns import ColumnMap
from feature_platform.importer.csv import read_csv
from feature_platform.importer.json import read_json
from feature_platform.importer.layouts import Layout
from feature_platform.importer.opening import Input, Member, damage_explained
from feature_platform.importer.parquet import read_feather, read_parquet
from feature_platform.importer.rows import Judge, MakeJudge
from feature_platform.importer.symbols import SymbolRule
from feature_platform.importer.times import TimeRule

__all__ = ["BATCH_ROWS", "BadRow", "Batch", "ColumnMap", "Findings", "TimeRule", "read_file"]

BATCH_ROWS = 100_000

# The usual size of a CSV row: Binance's rows have 100 to 130 bytes, rows of six columns 60.
_BYTES_PER_ROW = 96


@dataclass
class Findings:
    """Facts about a file that are known after it was read.

    judges: one for each stream of bars in the file.
    skipped: the files in an archive that were ignored.
    """

    judges: list[Judge] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def layouts(self) -> list[Layout]:
        """Return the recognised layouts, each once."""
        return list({judge.layout.name: judge.layout for judge in self.judges}.values())

    @property
    def local(self) -> bool:
        """Return whether the file has times without an offset from UTC."""
        return any(judge.local for judge in self.judges)

    @property
    def coarse(self) -> str | None:
        """Return "days" or "hours" where the times have no minutes, otherwise None."""
        if self.judges and all(judge.layout.date_only for judge in self.judges):
            return "days"
        if self.judges and all(judge.hours for judge in self.judges):
            return "hours"
        return None


def read_file(
    path: Path | Input,
    *,
    symbol: str | None = None,
    columns: ColumnMap | None = None,
    rule: TimeRule | None = None,
    batch_rows: int = BATCH_ROWS,
    findings: Findings | None = None,
) -> Generator[Batch, None, None]:
    """Read a file of bars in batches, and find every row that cannot be stored.

    The content of a file decides its format; docs/importing.md lists the formats.

    symbol: the symbol of the bars; None where a column holds the symbols.
    columns: the columns that are not found by the known names.
    rule: the rule by which times are read.
    batch_rows: about the number of rows to hold at a time.
    findings: receives the facts about the file.
    Raises UserError where the file as a whole cannot be read.
    """
    names = columns or ColumnMap()
    symbols = SymbolRule(symbol, renames=names.renames)
    times = rule or TimeRule()
    found = findings if findings is not None else Findings()
    found.judges.clear()

    def judge(file: str, layout: Layout) -> Judge:
        made = Judge(file, layout, symbols, times)
        found.judges.append(made)
        return made

    source = path if isinstance(path, Input) else Input(path)
    with damage_explained(source.label), source.opened() as (raw, size):
        for member in source.members(raw):
            found.skipped = source.skipped

            def done() -> float:
                return min(raw.tell() / size, 1.0) if size else 1.0

            yield from _read(member, names, judge, times.stamp, batch_rows, done)


def _read(
    member: Member,
    columns: ColumnMap,
    judge: MakeJudge,
    stamp: str,
    batch_rows: int,
    done: Callable[[], float],
) -> Iterator[Batch]:
    options: Any = {"columns": columns, "judge": judge, "stamp": stamp}
    match member.kind:
        case "parquet":
            yield from read_parquet(member.stream, member.name, batch_rows=batch_rows, **options)
        case "feather":
            yield from read_feather(member.stream, member.name, batch_rows=batch_rows, **options)
        case "json":
            yield from read_json(member.stream, member.name, batch_rows=batch_rows, **options)
        case "csv":
            yield from read_csv(
                member.stream,
                member.name,
                block_size=batch_rows * _BYTES_PER_ROW,
                done=done,
                **options,
            )
