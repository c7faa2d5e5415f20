"""Guards against rows of feature views that differ from their definition, whatever the history."""

from __future__ import annotations

import psycopg
import pytest

from feature_platform_tests.view_histories import run_histories


@pytest.mark.slow
def test_random_views_over_random_histories_are_exact(conn: psycopg.Connection) -> None:
    assert run_histories(conn, seed=1, count=20, of_views=5) > 500
