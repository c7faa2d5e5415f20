"""Guards against the loss of bars when the command `record` is killed or stopped."""

from __future__ import annotations

import pytest

from feature_platform.recorder.spool import Spool
from feature_platform.settings import get_settings
from feature_platform_tests.fix_processes import only_line, run
from feature_platform_tests.fix_recorder import Live, RecorderProcess

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


def test_bars_survive_a_kill_and_a_stop_while_the_database_is_away(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_RECORDER_MEMORY", "0")
    spool = get_settings().home / "recorder" / "spool.jsonl"
    with RecorderProcess() as killed:
        killed.wait_for("bars stored")
        with live.database.away():
            killed.wait_for("bars to disk", times=2)
            killed.kill()
        since = live.clock.now()
    assert spool.stat().st_size > 0

    with RecorderProcess() as stopped:
        stopped.wait_for("bars of an earlier run are on disk")
        stopped.wait_for("that were on disk")
        stopped.wait_for("no minute is missing")
        assert spool.stat().st_size == 0
        rejected = run("record")
        assert rejected.returncode == 2
        assert "another recorder runs in" in only_line(rejected.stderr)
        live.wait_for_truth(live.pass_minutes(1), since)
        with live.database.away():
            live.pass_minutes(2)
            log = stopped.stop()
    assert log.splitlines()[-1].endswith("stopped")
    left = Spool(spool)
    assert left.bars >= len(live.venue.truth.markets)
    left.close()
