"""The SQL statements of Python, by name.

The files of `sql/queries/`, one for each consumer, hold every statement under a line `-- name --`
and a line `-- purpose`; no code formats a statement from strings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import LiteralString

_HEADING = re.compile(r"^-- (?P<name>[a-z][a-z0-9_]*) --$", re.MULTILINE)


def sql_dir() -> Path:
    """Return the directory of the SQL files: inside an installed wheel, or beside the package."""
    package = Path(__file__).parent
    installed = package / "sql"
    return installed if installed.is_dir() else package.parent / "sql"


def parse_queries(text: str) -> dict[str, LiteralString]:
    """Split the text of a query file into its statements by name.

    Raises ValueError when a name is given twice or has no statement.
    """
    found: dict[str, LiteralString] = {}
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=True):
        name = heading["name"]
        lines = text[heading.end() : end].splitlines()
        statement = "\n".join(line for line in lines if not line.startswith("--")).strip()
        if name in found:
            raise ValueError(f"the query {name} is defined twice")
        if not statement:
            raise ValueError(f"the query {name} has no statement")
        found[name] = statement  # reviewed as code, and so as safe as a literal
    return found


def query_files() -> list[Path]:
    """Return the files of statements, in the order of their names."""
    return sorted((sql_dir() / "queries").glob("*.sql"))


queries: Mapping[str, LiteralString] = MappingProxyType(
    parse_queries("".join(file.read_text(encoding="utf-8") for file in query_files()))
)
