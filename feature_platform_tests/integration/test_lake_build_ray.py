"""Guards against builds on a Ray cluster that differ, or die with one of its workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_platform.errors import UserError
from feature_platform.lake.tasks import Computed, Task, compute
from feature_platform_tests.fix_lake import Lake
from feature_platform_tests.integration.test_lake_build import VIEW, build_of, built_rows

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'feature_platform[ray]'")

pytestmark = [
    pytest.mark.slow,
    # Ray's own: it leaves sockets and processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_a_build_on_ray_survives_a_killed_worker(
    lake: Lake, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.sync()
    monkeypatch.setattr("feature_platform.lake.tasks._TASK_ROWS", 1000)
    monkeypatch.setattr("feature_platform.lake.tasks._LOOK_BACKS", 0)
    built = build_of(lake, VIEW)
    local = built_rows(lake, VIEW)
    assert built.tasks > 6
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    assert build_of(lake, VIEW, engine="ray", workers=2).rows == len(local)
    assert built_rows(lake, VIEW) == local

    killed = lake.path / "killed"
    monkeypatch.setattr("feature_platform.lake.engines.compute", dies_once(killed))
    assert build_of(lake, VIEW, engine="ray", workers=2).rows == len(local)
    assert killed.exists()
    assert built_rows(lake, VIEW) == local


def test_ray_needs_an_address(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.sync()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="set RAY_ADDRESS"):
        build_of(lake, VIEW, engine="ray")


def dies_once(flag: Path) -> Callable[[Task], Computed]:
    """Return a `compute` that kills the first worker process that has symbol B."""

    def compute_or_die(task: Task) -> Computed:
        found = compute(task)
        if any(one.symbol == "B" for one in task.symbols) and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return compute_or_die
