"""Guards against rows that depend on the order of the writes, not on the bars alone.

FEATURE_PLATFORM_TEST_SEARCH=N tries N new examples instead of the same ones each time.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from feature_platform_tests import histories as h
from feature_platform_tests.fix_engine import Bench

SEARCH = int(os.environ.get("FEATURE_PLATFORM_TEST_SEARCH", "0"))


def tries(count: int) -> settings:
    """Return the settings of a test that tries `count` examples by default."""
    return settings(
        max_examples=SEARCH or count,
        derandomize=not SEARCH,
        database=None,
        deadline=None,
        print_blob=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@tries(150)
@given(history=st.lists(h.operations, min_size=3, max_size=14))
def test_after_any_history_the_rows_follow_from_the_bars(
    bench: Bench, history: list[h.Operation]
) -> None:
    h.check_history(bench, history)


@tries(12)
@given(
    volumes=st.sampled_from([(5.0,), (0.1, 0.7, 1e12, 3.3), (0.0, 0.0, 1.5)]),
    history=st.lists(h.operations, min_size=2, max_size=6),
)
def test_after_any_history_of_whole_days_the_rows_follow_from_the_bars(
    bench: Bench, volumes: tuple[float, ...], history: list[h.Operation]
) -> None:
    whole_days = h.WriteRun("A", 700, 3000, volumes)
    h.check_history(bench, [whole_days, h.Refresh(None, None), *history])


@tries(60)
@given(before=st.lists(h.operations, max_size=3), history=h.overtaken_refreshes())
def test_writes_during_a_refresh_are_not_lost(
    bench: Bench, before: list[h.Operation], history: list[h.Operation]
) -> None:
    h.check_history(bench, [*before, *history])
