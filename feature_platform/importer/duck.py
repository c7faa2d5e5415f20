"""Connect to DuckDB, which parses CSV and JSON for the import."""

from __future__ import annotations

import duckdb


def connect() -> duckdb.DuckDBPyConnection:
    """Return a connection to a DuckDB in memory, with one thread.

    Its progress bar is off: DuckDB would print it to standard output for files that take more than
    two seconds.
    """
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET enable_progress_bar = false")
    return connection
