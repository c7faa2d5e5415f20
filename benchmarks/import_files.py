"""An import of files of an exchange, beside a bare COPY of bars in the form of the table."""

from __future__ import annotations

import gzip
import statistics
import tempfile
from pathlib import Path

from psycopg import ClientCursor

from benchmarks.bars import DAY, create_generator
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Workbench,
    interleave,
    queries,
    ratio_of_medians,
    require,
    timed,
    value,
)
from feature_platform.importer import import_bars

MONTH = 30  # days
MONTHS = 12

_SYMBOL = "SYM0001/USDT"
_HEADER = (
    b"open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    b"taker_buy_volume,taker_buy_quote_volume,ignore\n"
)
_BLOCK = 1 << 20  # bytes


def run(bench: Workbench) -> Result:
    """Measure the import of a year of one symbol, a file a month."""
    months = bench.scaled(MONTHS, at_least=2)
    days = bench.scaled(MONTH) if bench.scale < 1 / MONTHS else MONTH
    rows = months * days * DAY
    with (
        bench.database("import") as connection,
        tempfile.TemporaryDirectory(prefix="feature_platform-") as folder,
    ):
        bench.show(f"{rows:,} bars in {months} files")
        create_generator(connection)
        connection.execute(queries["create_bare_table"])
        files = [
            _write_klines(connection, Path(folder), month, days * DAY) for month in range(months)
        ]
        plain = _write_bars(connection, Path(folder), rows)

        def bare_copy() -> float:
            connection.execute(queries["empty_bare_table"])
            connection.execute(queries["checkpoint"])
            return timed(lambda: _copy(connection, plain))

        def whole_import() -> float:
            connection.execute(queries["empty_bars"])
            connection.execute(queries["checkpoint"])
            return timed(lambda: import_bars(connection, files, symbol=_SYMBOL))

        seconds = interleave({"bare copy": bare_copy, "import": whole_import}, bench.rounds(5))
        require(0, value(connection, "count_other_bars"), "bars that the import stored otherwise")
    copied, imported = seconds["bare copy"], seconds["import"]
    return Result(
        ratios=[
            Ratio(
                f"import of {rows:,} bars in {months} files: time of a bare COPY",
                ratio_of_medians(imported, copied),
                at_most=2,
            )
        ],
        figures={
            "bars": rows,
            "files": months,
            "bars/s, bare copy": rows / statistics.median(copied),
            "bars/s, import": rows / statistics.median(imported),
        },
        seconds=seconds,
    )


def _write_klines(connection: Connection, folder: Path, month: int, minutes: int) -> Path:
    """Write one month in the layout of Binance's files, compressed."""
    path = folder / f"SYM0001USDT-1m-{month + 1:02}.csv.gz"
    with gzip.open(path, "wb", compresslevel=6) as file:
        file.write(_HEADER)
        for block in _generate(connection, "copy_klines", month * minutes, minutes):
            file.write(block)
    return path


def _write_bars(connection: Connection, folder: Path, minutes: int) -> Path:
    """Write all the bars into one file in the form of the table."""
    path = folder / "bars.csv"
    with path.open("wb") as file:
        for block in _generate(connection, "copy_bars", 0, minutes):
            file.write(block)
    return path


def _generate(connection: Connection, query: str, first: int, minutes: int) -> list[bytes]:
    span = {"first_minute": first, "last_minute": first + minutes - 1}
    # COPY accepts no parameters of the server.
    with ClientCursor(connection).copy(queries[query], span) as copy:
        return [bytes(block) for block in copy]


def _copy(connection: Connection, path: Path) -> None:
    with (
        path.open("rb") as file,
        connection.cursor() as cursor,
        cursor.copy(queries["bare_copy"]) as copy,
    ):
        while block := file.read(_BLOCK):
            copy.write(block)
