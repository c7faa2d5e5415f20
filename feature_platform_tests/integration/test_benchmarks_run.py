"""The benchmarks run and store their results; this test does not check the speed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import BENCHMARKS, main
from feature_platform_tests.fix_environment import fast_directory

TINY = "0.002"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run every benchmark at a tiny size; return the stored results. Each checks its own."""
    output = tmp_path_factory.mktemp("benchmarks") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(fast_directory()))
        main(["--scale", TINY, "--output", str(output)])
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in output.iterdir()}


def test_each_benchmark_keeps_its_results(results: dict[str, Any]) -> None:
    assert results.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_results_say_what_was_measured_on_what(results: dict[str, Any], name: str) -> None:
    result = results[name]
    assert result["benchmark"] == name
    assert result["ratios"]
    assert all(ratio["value"] > 0 for ratio in result["ratios"])
    assert all(ratio["met"] in (True, False, None) for ratio in result["ratios"])
    assert all(figure > 0 or "growth" in what for what, figure in result["figures"].items())
    assert all(taken and min(taken) > 0 for taken in result["seconds"].values())
    assert result["machine"]["cores"] > 0
    assert result["machine"]["postgresql"].startswith("18.")
    assert result["machine"]["settings"]["fsync"] == "on"


def test_a_benchmark_is_chosen_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--only", "nothing", "--output", str(tmp_path)])
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert all(name in told for name in BENCHMARKS)
    assert not list(tmp_path.iterdir())
