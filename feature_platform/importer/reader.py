"""Files of bars: CSV, JSON, Parquet or Feather, compressed or not, read in pieces and judged."""

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

__all__ = ["BATCH_ROWS", "BadRow", "Batch", "ColumnMap", "Findings", "TimeRule", "read_bars"]

BATCH_ROWS = 100_000

# Usual size of a row of a CSV file: Binance's have 100 to 130 bytes, six columns 60.
_BYTES_PER_ROW = 96


@dataclass
class Findings:
    """What was found about a file while it was read.

    judges: one for each stream of bars in the file.
    skipped: files in an archive that hold no bars.
    """

    judges: list[Judge] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def layouts(self) -> list[Layout]:
        """Return the layouts that were recognised, each once."""
        return list({judge.layout.name: judge.layout for judge in self.judges}.values())

    @property
    def local(self) -> bool:
        """Tell whether times without an offset from UTC were among the file's."""
        return any(judge.local for judge in self.judges)

    @property
    def coarse(self) -> str | None:
        """Return what the times have instead of minutes: "days" or "hours", None for minutes."""
        if self.judges and all(judge.layout.date_only for judge in self.judges):
            return "days"
        if self.judges and all(judge.hours for judge in self.judges):
            return "hours"
        return None


def read_bars(
    path: Path | Input,
    *,
    symbol: str | None = None,
    columns: ColumnMap | None = None,
    rule: TimeRule | None = None,
    batch_rows: int = BATCH_ROWS,
    findings: Findings | None = None,
) -> Generator[Batch, None, None]:
    """Read a file of bars in pieces, and find every row that cannot be stored.

    The content tells the format, docs/importing.md which there are.

    symbol: whose bars they are; None where a column says it.
    columns: the columns that are not recognised by name.
    rule: how times are to be read.
    batch_rows: about how many rows to hold at a time.
    findings: gets what is found about the file.
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
