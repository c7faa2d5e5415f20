"""Guards against the loss of bars on disk, by a kill of the process or a full disk."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_platform.bars import StreamBar
from feature_platform.recorder.spool import Spool
from feature_platform_tests.fix_recorder import files_up_to

FIRST = [StreamBar("BTC/USDT", 60_000_000 * at, 1.1, 2.0, 0.1, 1 / 3, 5e-17) for at in range(3)]
SECOND = [StreamBar("XRP/ETH", 0, 0.0007, 0.0007, 0.0007, 0.0007, 0.0)]

APPEND_AND_DIE = """
import os, signal, sys
from pathlib import Path
from feature_platform.recorder.spool import Spool
from feature_platform.bars import StreamBar
from feature_platform_tests.fix_recorder import files_up_to

spool = Spool(Path(sys.argv[1]))
spool.append([StreamBar("BTC/USDT", 60_000_000, 1.0, 2.0, 0.5, 1.5, 3.0)])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """Yield an empty spool."""
    made = Spool(tmp_path / "new" / "spool")
    yield made
    made.close()


def test_batches_are_read_in_order_exact_to_the_last_bit(spool: Spool) -> None:
    spool.append(FIRST)
    spool.append(SECOND)
    assert spool.bars == 4
    assert list(spool.batches()) == [FIRST, SECOND]
    assert list(Spool(spool.path).batches()) == [FIRST, SECOND]
    spool.clear()
    assert (spool.bars, list(spool.batches()), spool.path.stat().st_size) == (0, [], 0)
    spool.append(SECOND)
    assert list(spool.batches()) == [SECOND]


def test_bars_survive_a_kill_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    done = subprocess.run([sys.executable, "-c", APPEND_AND_DIE, path], check=False)
    assert done.returncode == -signal.SIGKILL
    (bars,) = Spool(path).batches()
    assert bars == [StreamBar("BTC/USDT", 60_000_000, 1.0, 2.0, 0.5, 1.5, 3.0)]


def test_an_incomplete_last_line_is_cut_off(spool: Spool) -> None:
    spool.append(FIRST)
    whole = spool.path.stat().st_size
    spool.append(SECOND)
    data = spool.path.read_bytes()
    for end in range(whole, len(data)):
        spool.path.write_bytes(data[:end])
        again = Spool(spool.path)
        assert list(again.batches()) == [FIRST]
        again.append(SECOND)
        assert list(again.batches()) == [FIRST, SECOND]
        again.close()


def test_a_damaged_line_loses_no_other_line(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    spool.append(FIRST)
    spool.append(SECOND)
    data = bytearray(spool.path.read_bytes())
    data[20] ^= 1
    spool.path.write_bytes(data)
    assert list(Spool(spool.path).batches()) == [SECOND]
    assert "cannot be read" in caplog.text


def test_a_full_disk_is_an_error_and_loses_no_bar(spool: Spool) -> None:
    spool.append(FIRST)
    size = spool.path.stat().st_size
    with files_up_to(size + 10), pytest.raises(OSError, match="File too large"):
        spool.append(SECOND)
    assert spool.path.stat().st_size == size
    spool.append(SECOND)
    assert list(Spool(spool.path).batches()) == [FIRST, SECOND]


def test_only_the_owner_can_read_the_spool(spool: Spool) -> None:
    assert spool.path.stat().st_mode & 0o077 == 0
