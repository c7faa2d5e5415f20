"""DuckDB, which parses CSV and JSON for the import."""

from __future__ import annotations

import duckdb


def connect() -> duckdb.DuckDBPyConnection:
    """Connect to a DuckDB in memory, with one thread.

    Its progress bar is off: it would be printed to standard output when a file takes two seconds.
    """
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET enable_progress_bar = false")
    return connection
