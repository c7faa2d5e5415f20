"""Guards against a check without its query."""

from __future__ import annotations

from feature_platform.queries import queries
from feature_platform.validation import BY_NAME, CHECKS


def test_each_check_has_its_query() -> None:
    special = {"stored_equals_recomputed", "served_equals_recomputed"}
    assert {check.statement for check in CHECKS if check.name not in special} <= set(queries)
    assert len(BY_NAME) == len(CHECKS)
