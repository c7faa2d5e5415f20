"""Guards against rows of before a view was built that a model could not have known.

Two views have the same columns. One is applied before all bars, so that readers see its rows at
each time. The rows of the other one, which is applied after them, are computed from the bars as
they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from psycopg.sql import SQL, Identifier

from feature_platform.views import FeatureView, catalog
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_knowledge import START, SYMBOLS, Past, Row, live_past, shown
from feature_platform_tests.fix_views import CANDLES, SHORT, refresh_all
from feature_platform_tests.integration.test_as_of import AFTER, DELAYS

EARLY = (SHORT, CANDLES)
LATE = tuple(replace(view, name=f"late_{view.name}") for view in EARLY)


@pytest.fixture(scope="module")
def past(databases: Databases) -> Iterator[Past]:
    with live_past(databases, 1) as past:
        past.set_clock(AFTER)
        catalog.apply(past.conn, LATE)
        refresh_all(past.conn)
        yield past


def rows(past: Past, view: FeatureView, function: str, argument: object) -> list[Row]:
    """Return the rows of a view by one of the functions under test."""
    statement = SQL(
        """SELECT s, k.bucket, k.values
           FROM feature_platform.feature_view v, unnest(%s::text[]) AS s,
                feature_platform.{}(v.id, s, %s, %s, %s) AS k
           WHERE v.name = %s"""
    ).format(Identifier(function))
    found = past.conn.execute(statement, [SYMBOLS, START, AFTER, argument, view.name])
    return sorted((row[0], row[1], tuple(map(shown, row[2]))) for row in found)


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("place", range(len(EARLY)))
def test_rows_of_some_time_after_their_close_are_what_a_reader_saw(
    past: Past, place: int, delay: str
) -> None:
    early, late = EARLY[place], LATE[place]
    expected = past.known_after_close(early.name, early.width, DELAYS[delay])
    assert rows(past, late, "known_rows_after", DELAYS[delay]) == expected
    assert bool(expected) == bool(DELAYS[delay])


@pytest.mark.parametrize("place", range(len(EARLY)))
def test_rows_as_of_a_time_are_what_a_reader_saw(past: Past, place: int) -> None:
    early, late = EARLY[place], LATE[place]
    for at, _ in past.seen[::17]:
        moment = at + timedelta(seconds=1)
        expected = past.known_at(early.name, moment)
        assert rows(past, late, "known_rows_at", moment) == expected
