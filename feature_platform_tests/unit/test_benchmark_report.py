"""Guards against figures in the docs that differ from the stored results, or are of small runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.harness import Ratio, Result
from benchmarks.report import BEGIN, END, README, RESULTS, keep, report, write_report

MACHINE = {
    "measured_at": "2026-03-01T10:00:00+00:00",
    "cores": 2,
    "processor": "a processor",
    "memory_gb": 8.0,
    "system": "Linux x86_64",
    "python": "3.12.1",
    "postgresql": "18.4",
}
RESULT = Result(
    ratios=[Ratio("a build: time of a COPY", 2.345, at_most=2), Ratio("a try: share", 0.5)],
    figures={"bars/s": 123_456.7},
    seconds={"build": [0.2, 0.1, 0.3], "lag": [number / 1000 for number in range(1, 1001)]},
)


def test_the_tables_of_the_readme_are_those_of_the_stored_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert text[text.index(BEGIN) + len(BEGIN) + 1 : text.index(END) - 1] == report(BENCHMARKS)


def test_only_full_runs_of_known_benchmarks_are_stored() -> None:
    kept = {path.stem: json.loads(path.read_text("utf-8")) for path in RESULTS.glob("*.json")}
    assert kept.keys() <= BENCHMARKS.keys()
    assert all(result["scale"] == 1 for result in kept.values())


def test_the_readme_describes_each_benchmark() -> None:
    text = README.read_text(encoding="utf-8")
    assert all(f"\n| `{name}` | " in text[: text.index(BEGIN)] for name in BENCHMARKS)


def test_a_report_shows_measured_and_promised_values(tmp_path: Path) -> None:
    keep(tmp_path, "build", 1.0, MACHINE, RESULT)
    tables = report(["build", "other"], tmp_path).splitlines()
    assert (
        "Measured on 2026-03-01, 2 cores (a processor), 8 GB, Linux x86_64, PostgreSQL 18.4,"
        " Python 3.12.1." in tables
    )
    assert "| `build` | a build: time of a COPY | 2.35 | at most 2 | **short** |" in tables
    assert "| `build` | a try: share | 0.50 |  |  |" in tables
    assert "| `build` | bars/s | 123,457 |" in tables
    assert "| `build` | build: median, in ms | 200 |" in tables
    assert "No result is kept of `other`." in tables


def test_a_report_names_a_scale_that_is_not_full(tmp_path: Path) -> None:
    keep(tmp_path, "build", 0.1, MACHINE, RESULT)
    assert "Python 3.12.1: `build` at scale 0.1." in report(["build"], tmp_path)


def test_many_times_are_stored_as_percentiles(tmp_path: Path) -> None:
    keep(tmp_path, "build", 1.0, MACHINE, RESULT)
    seconds = json.loads((tmp_path / "build.json").read_text("utf-8"))["seconds"]
    assert seconds["build"] == [0.2, 0.1, 0.3]
    assert len(seconds["lag"]) == 101
    assert (seconds["lag"][0], seconds["lag"][50], seconds["lag"][-1]) == (
        0.001,
        pytest.approx(0.5, abs=0.001),
        1.0,
    )


def test_a_report_replaces_the_text_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    keep(tmp_path, "build", 1.0, MACHINE, RESULT)
    write_report(["build"], tmp_path, readme)
    once = readme.read_text(encoding="utf-8")
    assert once == f"before\n{BEGIN}\n{report(['build'], tmp_path)}\n{END}\nafter\n"
    write_report(["build"], tmp_path, readme)
    assert readme.read_text(encoding="utf-8") == once
