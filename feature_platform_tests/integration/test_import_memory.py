"""Guards against an import whose memory grows with its file."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

# Large enough that an import handles several pieces of a file at once.
SMALL = 400_000
TIMES = 5
TOLERANCE_MIB = 48

IMPORT = """
import resource, sys
from pathlib import Path
import psycopg
from feature_platform.importer import import_bars

path, rows, url = sys.argv[1:]
with psycopg.connect(url, autocommit=True) as conn:
    report = import_bars(conn, [Path(path)], symbol=rows)
print(report.total.inserted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

READ = """
import resource, sys
from pathlib import Path
from feature_platform.importer.reader import read_file

path, rows = sys.argv[1:]
found = sum(len(batch.line) for batch in read_file(Path(path), symbol="A"))
print(found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write(path: Path, rows: int) -> None:
    """Write rows piece by piece, so that the test needs little memory itself."""
    schema = pa.schema(
        [("ts", pa.int64())]
        + [(name, pa.float64()) for name in ("open", "high", "low", "close", "vol")]
    )
    if path.suffix == ".json":
        table = path.with_suffix(".csv")
        write(table, rows)
        with table.open() as lines, path.open("w") as file:
            next(lines)
            file.writelines(
                f"{',' if at else '['}[{line.strip()}]" for at, line in enumerate(lines)
            )
            file.write("]")
        return
    makers = {".parquet": pq.ParquetWriter, ".feather": pa.ipc.new_file}
    generator = np.random.default_rng(5)
    with (
        gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as raw,
        makers.get(path.suffix, pa_csv.CSVWriter)(raw, schema) as writer,
    ):
        for start in range(0, rows, SMALL):
            number = np.arange(start, min(start + SMALL, rows))
            price = np.round(100 + generator.random(len(number)), 4)
            columns = [number * 60_000 + 1_262_304_000_000, price, price + 1, price - 1, price]
            columns.append(np.round(generator.exponential(1000, len(number)), 3))
            writer.write(pa.table([pa.array(column) for column in columns], schema=schema))


def growth_mib(path: Path, program: str, *arguments: str) -> int:
    """Return the additional memory of a process for a file that is TIMES times larger."""
    peaks = []
    for rows in (SMALL, SMALL * TIMES):
        write(path, rows)
        command = [sys.executable, "-c", program, str(path), str(rows), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found, peak = map(int, done.stdout.split())
        assert found == rows
        peaks.append(peak)
    return peaks[1] - peaks[0]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_the_memory_of_an_import_does_not_grow_with_the_file(database: str, tmp_path: Path) -> None:
    assert growth_mib(tmp_path / "bars.csv.gz", IMPORT, database) < TOLERANCE_MIB


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".feather"])
def test_the_memory_of_reading_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    assert growth_mib(tmp_path / f"bars{suffix}", READ) < TOLERANCE_MIB


@pytest.mark.slow
def test_the_memory_of_reading_json_is_less_than_the_file(tmp_path: Path) -> None:
    """DuckDB has a part of a long array in memory; docs/importing.md advises other formats."""
    path = tmp_path / "bars.json"
    assert growth_mib(path, READ) < path.stat().st_size / 2**20
