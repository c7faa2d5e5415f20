"""A year of one symbol into pandas, beside the raw COPY of its rows and beside pd.read_sql."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import psycopg
import sqlalchemy

from benchmarks.bars import DAY, FIRST, create_generator, load_bars, moment, refresh, settle
from benchmarks.harness import (
    Connection,
    Ratio,
    Result,
    Side,
    Workbench,
    environment,
    interleave,
    queries,
    ratio_of_medians,
    require,
    timed,
)
from feature_platform import read_features
from feature_platform.settings import PREFIX

SYMBOL = "SYM0001/USDT"
YEAR = 365 * DAY
COLUMNS = 10  # bucket and nine features


def run(bench: Workbench) -> Result:
    """Measure read_features beside the others; all read the same rows."""
    minutes = bench.scaled(YEAR, at_least=DAY)
    with (
        bench.database("read_year") as connection,
        environment(**{f"{PREFIX}DATABASE_URL": connection.info.dsn}),
        _engine(connection) as engine,
    ):
        bench.show(f"one symbol, {minutes:,} minutes, {COLUMNS} columns")
        create_generator(connection)
        load_bars(connection, range(1, 2), range(minutes))
        refresh(connection)
        settle(connection)
        seconds = interleave(_sides(connection, engine, minutes), bench.rounds(5))
    ours, raw = seconds["read_features"], seconds["raw COPY"]
    what = f"a symbol-year, {minutes:,} rows"
    return Result(
        ratios=[
            Ratio(f"{what}: time of the raw COPY", ratio_of_medians(ours, raw), at_most=1.3),
            Ratio(
                f"{what}: times faster than pd.read_sql over psycopg",
                ratio_of_medians(seconds["pd.read_sql, psycopg"], ours),
                at_least=5,
            ),
            Ratio(
                f"{what}: times faster than pd.read_sql over SQLAlchemy",
                ratio_of_medians(seconds["pd.read_sql, SQLAlchemy"], ours),
            ),
        ],
        figures={"rows": minutes, "rows/s, read_features": minutes / statistics.median(ours)},
        seconds=seconds,
    )


@contextmanager
def _engine(connection: Connection) -> Iterator[sqlalchemy.Engine]:
    """Yield SQLAlchemy's engine for the database of a connection, and close its connections."""
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(connection.info.dsn)
    )
    try:
        yield engine
    finally:
        engine.dispose()


def _sides(connection: Connection, engine: sqlalchemy.Engine, minutes: int) -> dict[str, Side]:
    window: dict[str, Any] = {"symbol": SYMBOL, "start": FIRST, "end": moment(minutes)}

    def copied() -> int:
        with connection.cursor().copy(queries["copy_year"]) as rows:
            return sum(1 for _ in rows) - 1  # the last is the trailer

    def read() -> int:
        return len(read_features(SYMBOL, FIRST, moment(minutes)))

    def read_sql() -> int:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pandas only supports SQLAlchemy", UserWarning)
            # pandas' stubs know connections of SQLAlchemy only.
            rows = pd.read_sql(queries["read_year"], connection, params=window)  # type: ignore[call-overload]
            return len(rows)

    def read_sqlalchemy() -> int:
        statement = sqlalchemy.text(queries["read_year_sqlalchemy"])
        with engine.connect() as session:
            return len(pd.read_sql(statement, session, params=window))

    def side(work: Callable[[], int]) -> Side:
        def measure() -> float:
            rows: list[int] = []
            seconds = timed(lambda: rows.append(work()))
            require([minutes], rows, "rows read")
            return seconds

        return measure

    return {
        "raw COPY": side(copied),
        "read_features": side(read),
        "pd.read_sql, psycopg": side(read_sql),
        "pd.read_sql, SQLAlchemy": side(read_sqlalchemy),
    }
