"""Metadata of events in the UI: numbers, tables, pictures and references to the SQL."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from feature_platform.queries import queries, sql_dir
from feature_platform.validation import CheckResult
from feature_platform.views.catalog import ViewStatus

SYMBOLS_SHOWN = 50
SYMBOLS_DRAWN = 3

_COLUMN_TYPES: Mapping[type, str] = {int: "int", float: "float", str: "string"}


def column_schema(table_name: str, columns: Mapping[str, str]) -> dg.TableSchema:
    """Describe the columns of a table: their types, and their comments in the SQL files."""
    comments = dict(
        re.findall(
            rf"^COMMENT ON COLUMN public\.{table_name}\.(\w+) IS '((?:[^']|'')*)';$",
            "".join(path.read_text(encoding="utf-8") for path in sorted(sql_dir().glob("*.sql"))),
            re.MULTILINE,
        )
    )
    return dg.TableSchema(
        [
            dg.TableColumn(name, kind, description=comments.get(name, "").replace("''", "'"))
            for name, kind in columns.items()
        ]
    )


def sql_references(*places: tuple[str, str]) -> dict[str, Any]:
    """Return references to lines of SQL files, each given by the file and the line's beginning."""
    references: list[dg.LocalFileCodeReference | dg.UrlCodeReference] = []
    for name, beginning in places:
        path = sql_dir() / name
        lines = path.read_text(encoding="utf-8").splitlines()
        found = (at for at, line in enumerate(lines, 1) if line.startswith(beginning))
        line = next(found, 1)  # if the line has changed, the code location must still load
        references.append(
            dg.LocalFileCodeReference(file_path=str(path), line_number=line, label=name)
        )
    return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=references)}


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Return a table of rows; all have the columns of the first."""
    records = [
        dg.TableRecord({name: "" if value is None else value for name, value in row.items()})
        for row in rows
    ]
    first = records[0].data if records else {}
    columns = [
        dg.TableColumn(name, _COLUMN_TYPES.get(type(value), "string"))
        for name, value in first.items()
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def of_check(result: CheckResult) -> dict[str, Any]:
    """Return the counts and measures of a check, and the first findings."""
    shown: dict[str, Any] = {
        "checked": result.checked,
        "wrong": result.wrong,
        **result.measures,
    }
    if result.rows:
        shown["findings"] = table(result.rows)
    return shown


def of_bars(connection: psycopg.Connection[Any], start: datetime, end: datetime) -> dict[str, Any]:
    """Count the bars and the minutes without a bar of some days, in total and by symbol."""
    rows = _rows(connection, "window_bars", start, end)
    return {
        _rows_of(start, end): sum(row["bars"] for row in rows),
        "missing minutes": sum(row["missing"] for row in rows),
        "open minutes": sum(row["open"] for row in rows),
        "quiet minutes": sum(row["quiet"] for row in rows),
        "unavailable minutes": sum(row["unavailable"] for row in rows),
        "lag (s)": max((row["lag"] for row in rows), default=0.0),
        "symbols": table(rows[:SYMBOLS_SHOWN]),
    }


def of_features(
    connection: psycopg.Connection[Any], start: datetime, end: datetime
) -> dict[str, Any]:
    """Count the rows and NULLs of some days, in total and by symbol, and plot them."""
    rows = _rows(connection, "window_features", start, end)
    count = sum(row["rows"] for row in rows)
    shown: dict[str, Any] = {
        _rows_of(start, end): count,
        "null rate of log_return": _rate(rows, "null_log_return", count),
        "null rate of volume_z": _rate(rows, "null_volume_z", count),
        "missing minutes": sum(row["missing"] for row in rows),
        "lag (s)": max((row["lag"] for row in rows), default=0.0),
        "symbols": table(rows[:SYMBOLS_SHOWN]),
    }
    # Symbols with missing minutes first.
    drawn = sorted((row for row in rows if row["rows"]), key=lambda row: -row["missing"])
    if drawn:
        from feature_platform.plot import window_png  # pandas, only for runs that draw

        names = [row["symbol"] for row in drawn[:SYMBOLS_DRAWN]]
        shown["plot"] = picture(window_png(connection, names, start, end))
    return shown


def of_view(
    connection: psycopg.Connection[Any], status: ViewStatus
) -> tuple[dict[str, Any], datetime | None]:
    """Describe the state of a view and of its symbols; also return the view's newest bucket."""
    rows = _rows_of_view(connection, "view_newest_rows", status.name, {"name": status.name})
    newest = max((row["newest"] for row in rows if row["newest"] is not None), default=None)
    symbols = [
        {
            "symbol": row["symbol"],
            "newest_row": second(row["newest"]),
            "lag_seconds": -1.0 if row["lag"] is None else round(row["lag"], 1),
        }
        for row in rows
    ]
    shown: dict[str, Any] = {
        "number of symbols": status.symbols,
        "rows waiting for refresh": status.dirty,
        "history built (%)": round(100 * status.built, 1),
        "state": status.state,
        "version": status.version,
        "symbols": table(symbols[:SYMBOLS_SHOWN]),
    }
    if status.lag is not None and newest is not None:
        shown |= {
            "newest": dg.MetadataValue.timestamp(newest),
            "lag (s)": round(status.lag.total_seconds(), 1),
        }
    return shown, newest


def of_view_rows(
    connection: psycopg.Connection[Any], name: str, start: datetime, end: datetime
) -> dict[str, Any]:
    """Count the rows of some days in a view, in total and by symbol."""
    window = {"start": start, "end": end}
    rows = _rows_of_view(connection, "view_window", name, window)
    return {
        _rows_of(start, end): sum(row["rows"] for row in rows),
        "rows by symbol": table(rows[:SYMBOLS_SHOWN]),
    }


def _rows_of_view(
    connection: psycopg.Connection[Any], query: str, name: str, given: Mapping[str, Any]
) -> list[dict[str, Any]]:
    statement = sql.SQL(queries[query]).format(view=sql.Identifier("public", name))
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, given).fetchall()


def second(at: datetime | None) -> str:
    """Show a time in UTC, to the second."""
    return "" if at is None else f"{at.astimezone(UTC):%F %T}"


def picture(png: bytes, title: str = "close and volume_z") -> dg.MarkdownMetadataValue:
    """Return a PNG as Markdown, which the UI shows."""
    data = base64.b64encode(png).decode()
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{data})")


def _rows(
    connection: psycopg.Connection[Any], query: str, start: datetime, end: datetime
) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(queries[query], {"start": start, "end": end}).fetchall()


def _rows_of(start: datetime, end: datetime) -> str:
    """Return the label of a row count that is not the count of the whole table."""
    return "rows of this day" if end - start <= timedelta(days=1) else "rows of these days"


def _rate(rows: Sequence[Mapping[str, Any]], column: str, count: int) -> float:
    return sum(row[column] for row in rows) / count if count else 0.0
