"""The stored results of benchmarks, and the tables of README.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import Ratio, Result

README = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("results")

BEGIN = "<!-- results: written by `python -m benchmarks --report` -->"
END = "<!-- end of results -->"

# Up to so many times are stored; of more times, their percentiles are stored.
_MOST_SECONDS = 200
_WORDS = {None: "", True: "ok", False: "**short**"}

Kept = Mapping[str, Any]


def keep(folder: Path, name: str, scale: float, machine: Kept, result: Result) -> None:
    """Write the result of a benchmark into `folder`, as JSON."""
    ratios = [
        {
            **asdict(ratio),
            "value": round(ratio.value, 3),
            "target": ratio.target,
            "met": ratio.met,
        }
        for ratio in result.ratios
    ]
    kept = {
        "benchmark": name,
        "scale": scale,
        "machine": machine,
        "ratios": ratios,
        "figures": {what: round(figure, 3) for what, figure in result.figures.items()},
        "seconds": {
            what: [round(second, 5) for second in _thinned(taken)]
            for what, taken in result.seconds.items()
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def write_report(names: Iterable[str], folder: Path = RESULTS, readme: Path = README) -> None:
    """Write the tables of the results in `folder` into the README, between its marks.

    names: those of all benchmarks, in the order of the tables.
    """
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = report(names, folder)
    readme.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")


def report(names: Iterable[str], folder: Path = RESULTS) -> str:
    """Return the tables of the results in `folder`, in Markdown."""
    kept: dict[str, Kept] = {}
    missing: list[str] = []
    for name in names:
        path = folder / f"{name}.json"
        if path.exists():
            kept[name] = json.loads(path.read_text(encoding="utf-8"))
        else:
            missing.append(f"`{name}`")
    lines = [""]
    if kept:
        lines += [*_machines(kept), "", *_ratios(kept), "", *_figures(kept), ""]
    if missing:
        lines += [f"No result is kept of {', '.join(missing)}.", ""]
    return "\n".join(lines)


def text_table(ratios: Iterable[Ratio]) -> str:
    """Return a table of ratios and their targets, for a terminal."""
    words = {None: "", True: "ok", False: "short"}
    rows = [("benchmark", "measured", "target", "")] + [
        (ratio.what, f"{ratio.value:.2f}", ratio.target, words[ratio.met]) for ratio in ratios
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip()
        for row in rows
    )


def _thinned(taken: list[float]) -> list[float]:
    if len(taken) <= _MOST_SECONDS:
        return taken
    return [min(taken), *statistics.quantiles(taken, n=100, method="inclusive"), max(taken)]


def _machines(kept: Mapping[str, Kept]) -> Iterator[str]:
    """Yield a line for each machine and day."""
    measured: dict[str, list[str]] = {}
    for name, result in kept.items():
        machine = result["machine"]
        what = (
            f"{machine['measured_at'][:10]}, {machine['cores']} cores ({machine['processor']}),"
            f" {machine['memory_gb']:g} GB, {machine['system']},"
            f" PostgreSQL {machine['postgresql']}, Python {machine['python']}"
        )
        scale = "" if result["scale"] == 1 else f" at scale {result['scale']:g}"
        measured.setdefault(what, []).append(f"`{name}`{scale}")
    for what, names in measured.items():
        alone = len(measured) == 1 and all(result["scale"] == 1 for result in kept.values())
        yield f"Measured on {what}{'' if alone else ': ' + ', '.join(names)}."


def _ratios(kept: Mapping[str, Kept]) -> Iterator[str]:
    yield "| benchmark | ratio | measured | promised | |"
    yield "|---|---|---:|---|---|"
    for name, result in kept.items():
        for ratio in result["ratios"]:
            met = _WORDS[ratio["met"]]
            value = f"{ratio['value']:.2f}"
            yield f"| `{name}` | {ratio['what']} | {value} | {ratio['target']} | {met} |"


def _figures(kept: Mapping[str, Kept]) -> Iterator[str]:
    yield "| benchmark | figure | measured |"
    yield "|---|---|---:|"
    for name, result in kept.items():
        for what, figure in result["figures"].items():
            yield f"| `{name}` | {what} | {_number(figure)} |"
        for what, taken in result["seconds"].items():
            median = _number(1000 * statistics.median(taken))
            yield f"| `{name}` | {what}: median, in ms | {median} |"


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"
