"""The dashboards, and their SQL as Grafana's PostgreSQL data source sends it.

Grafana replaces variables first, then the interval, then macros: a name and all up to the first
closing parenthesis, so an argument cannot contain one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana"

_MACRO = re.compile(r"\$(__\w+)\(([^)]*)\)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Query:
    """One query of a dashboard.

    where: the dashboard, and the title of a panel or the name of an annotation or variable.
    format: `time_series` or `table`.
    """

    where: str
    sql: str
    format: str


@dataclass(frozen=True)
class View:
    """A user's view: a range of time, the interval of its points, the variables' values."""

    start: datetime
    end: datetime
    interval: str = "1m"
    symbols: str | Sequence[str] = ()
    view: str = "features_1m"
    column: str = "volume_z"
    timescaledb: bool = False


def dashboards() -> dict[str, dict[str, Any]]:
    """Return the dashboards by the names of their files."""
    files = sorted((FOLDER / "dashboards").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def queries() -> list[Query]:
    """Return every query of every dashboard."""
    return [query for name, board in dashboards().items() for query in _queries(name, board)]


def _queries(name: str, board: Mapping[str, Any]) -> Iterator[Query]:
    for panel in board["panels"]:
        for target in panel["targets"]:
            where = f"{name}: {panel['title']}"
            yield Query(where, target["rawSql"], target["format"])
    for note in board["annotations"]["list"]:
        if not note.get("builtIn"):
            yield Query(f"{name}: {note['name']}", note["target"]["rawSql"], "table")
    for variable in board["templating"]["list"]:
        yield Query(f"{name}: {variable['name']}", variable["query"], "table")


def expand(sql: str, view: View) -> str:
    """Return the SQL that Grafana sends."""
    sql = sql.replace("${symbol:sqlstring}", _sqlstring(view.symbols))
    sql = sql.replace("${view:sqlstring}", _sqlstring(view.view))
    sql = sql.replace("${column:sqlstring}", _sqlstring(view.column))
    assert not re.search(r"\$\{|\$(?!__)[a-z]", sql), f"a variable that is not quoted: {sql}"
    seconds = _seconds(view.interval)
    sql = sql.replace("$__interval_ms", str(seconds * 1000)).replace("$__interval", view.interval)
    return _MACRO.sub(lambda found: _macro(found[1], found[2], view), sql)


def fetch(
    connection: psycopg.Connection[Any], query: Query, view: View
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the names and rows that a panel gets; Grafana fills intervals without a row."""
    cursor = connection.execute(expand(query.sql, view).encode())
    names = [column.name for column in cursor.description or ()]
    rows = cursor.fetchall()
    group = re.search(r"\$__timeGroup(?:Alias)?\([^,]+,[^,]+,([^)]+)\)", query.sql)
    if group and query.format == "time_series":
        filler = None if group[1].strip() == "NULL" else float(group[1])
        rows = _fill(rows, len(names) - 1, filler, view)
    return names, rows


def _fill(
    rows: list[tuple[Any, ...]], columns: int, filler: float | None, view: View
) -> list[tuple[Any, ...]]:
    """Insert a row of the filler for each interval of the range that has no row."""
    step = _seconds(view.interval)
    first, last = (int(end.timestamp()) // step * step for end in (view.start, view.end))
    there = {int(row[0]): row for row in rows}
    return [
        there.get(time, (time, *[filler] * columns)) for time in range(first, last + step, step)
    ]


def _macro(name: str, arguments: str, view: View) -> str:
    parts = [part.strip() for part in arguments.split(",")]
    start, end = (f"'{_rfc3339(moment)}'" for moment in (view.start, view.end))
    if name == "__timeFilter":
        return f"{parts[0]} BETWEEN {start} AND {end}"
    if name == "__timeFrom":
        return start
    if name == "__timeTo":
        return end
    if name == "__time":
        return f'{parts[0]} AS "time"'
    if name == "__timeEpoch":
        return f'extract(epoch from {parts[0]}) as "time"'
    if name == "__timeGroupAlias":
        return _macro("__timeGroup", arguments, view) + ' AS "time"'
    if name == "__timeGroup":
        seconds = _seconds(parts[1].strip("'"))
        if view.timescaledb:
            return f"time_bucket('{seconds:.3f}s',{parts[0]})"
        return f"floor(extract(epoch from {parts[0]})/{seconds})*{seconds}"
    raise AssertionError(f"Grafana knows no macro ${name}, or this test does not yet")


def _rfc3339(moment: datetime) -> str:
    text = moment.astimezone(UTC).isoformat(timespec="auto")
    return re.sub(r"(\.\d*?)0*\+00:00$", r"\1", text.replace("+00:00", "")) + "Z"


def _sqlstring(values: str | Sequence[str]) -> str:
    """Quote a value, or each of several, as the variable format `sqlstring` does."""
    each = [values] if isinstance(values, str) else values
    return ",".join("'" + value.replace("'", "''") + "'" for value in each)


def _seconds(interval: str) -> int:
    return int(timedelta(seconds=int(interval[:-1]) * _UNITS[interval[-1]]).total_seconds())
