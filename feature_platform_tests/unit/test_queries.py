"""Guards against statements that are parsed wrong, unused names, and missing comments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import feature_platform
from feature_platform.queries import parse_queries, queries, query_files


def test_a_file_is_parsed_into_named_queries() -> None:
    text = """-- A file of queries.

-- first --
-- What it is for.
SELECT 1;

-- ==== another block ====

-- second --
-- What it is for.
SELECT x  -- why
  -- a remark
  FROM y
 WHERE a = %(a)s;
"""
    assert parse_queries(text) == {
        "first": "SELECT 1;",
        "second": "SELECT x  -- why\n  -- a remark\n  FROM y\n WHERE a = %(a)s;",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-- twice --\nSELECT 1;\n-- twice --\nSELECT 2;\n", "the query twice is defined twice"),
        ("-- none --\n-- Nothing.\n", "the query none has no statement"),
    ],
)
def test_a_file_without_a_statement_or_with_a_repeated_name_is_rejected(
    text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_queries(text)


def test_every_query_has_a_line_of_purpose() -> None:
    text = "".join(file.read_text() for file in query_files())
    with_purpose = re.findall(r"^-- (\w+) --\n-- \S", text, re.MULTILINE)
    assert with_purpose == list(queries)


def test_every_query_that_is_sent_exists() -> None:
    package = Path(feature_platform.__file__).parent
    sources = "".join(path.read_text() for path in package.rglob("*.py"))
    sent = set(re.findall(r"(?:\bqueries\[|\.fetch\(\s*)\"(\w+)\"", sources))
    assert {"status_symbols", "service_latest"} <= sent <= set(queries)
