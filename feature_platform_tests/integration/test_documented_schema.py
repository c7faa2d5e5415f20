"""Guards against tables, views, functions and procedures without documentation."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from feature_platform_tests.unit.test_documented import ALL

OBJECTS = """
    SELECT made.kind, made.name
      FROM (SELECT 'relation' AS kind, 'pg_class'::regclass AS classid, oid, relname AS name,
                   relnamespace AS namespace
              FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm')
            UNION ALL
            SELECT CASE prokind WHEN 'p' THEN 'procedure' ELSE 'function' END, 'pg_proc'::regclass,
                   oid, proname, pronamespace
              FROM pg_proc) AS made
     WHERE made.namespace IN ('public'::regnamespace, 'feature_platform'::regnamespace)
       AND NOT EXISTS (SELECT FROM pg_depend d
                        WHERE d.classid = made.classid AND d.objid = made.oid AND d.deptype = 'e')
     ORDER BY 1, 2
"""


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_every_object_of_the_schema_is_documented(conn: psycopg.Connection[Any]) -> None:
    made = conn.execute(OBJECTS).fetchall()
    assert ("relation", "features_1m") in made
    assert ("procedure", "refresh_features_1m") in made
    missing = [f"{kind} {name}" for kind, name in made if not re.search(rf"\b{name}\b", ALL)]
    assert missing == []
