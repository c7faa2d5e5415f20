"""Run the benchmarks on an embedded server of their own, and store their results as JSON.

A missed target is printed and is not a failure: times depend on the other load of the machine.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import (
    as_of,
    correction,
    drift,
    full_build,
    heavy_lag,
    idle,
    import_files,
    lag,
    lake,
    lake_build,
    memory,
    one_minute,
    read_year,
    rest_backfill,
    serve_latest,
    ten_thousand,
    ticks,
    training_set,
    verify_rows,
    views,
)
from benchmarks.harness import Result, Workbench
from benchmarks.machine import describe
from benchmarks.report import RESULTS, keep, text_table, write_report
from feature_platform.embedded.server import EmbeddedServer

BENCHMARKS: Mapping[str, Callable[[Workbench], Result]] = {
    "one_minute": one_minute.run,
    "full_build": full_build.run,
    "correction": correction.run,
    "import": import_files.run,
    "read_year": read_year.run,
    "lake": lake.run,
    "as_of": as_of.run,
    "training_set": training_set.run,
    "verify": verify_rows.run,
    "drift": drift.run,
    "lag": lag.run,
    "heavy_lag": heavy_lag.run,
    "views": views.run,
    "lake_build": lake_build.run,
    "memory": memory.run,
    "serve_latest": serve_latest.run,
    "ticks": ticks.run,
    "rest_backfill": rest_backfill.run,
    "idle": idle.run,
    "ten_thousand": ten_thousand.run,
}
# At full size they take more than an hour, and run only by name.
LONG = {"ten_thousand"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line selects."""
    options = _parse(arguments)
    if options.report:
        write_report(BENCHMARKS)
        return
    # A run at another scale does not show the targets: its results are stored only on request.
    output = options.output or (RESULTS if options.scale == 1 else None)
    found: dict[str, Result] = {}
    with _server() as server:
        url = server.url("postgres")
        _print_machine(describe(url))
        for name in options.only or _by_default(options.scale):
            machine = describe(url)
            bench = Workbench(url, options.scale, _show, options.keep)
            found[name] = _run(name, bench)
            if output is not None:
                keep(output, name, options.scale, machine, found[name])
    if output == RESULTS:
        write_report(BENCHMARKS)
    print()
    print(text_table([ratio for result in found.values() for ratio in result.ratios]))


def _by_default(scale: float) -> list[str]:
    return [name for name in BENCHMARKS if scale < 1 or name not in LONG]


def _show(what: str) -> None:
    print(f"  {what}", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="may be repeated")
    parser.add_argument("--scale", type=_scale, default=1.0, help="fewer symbols than promised")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the JSON files go; by default to benchmarks/results at scale 1, else nowhere",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="where `ten_thousand` keeps its database, which the next run continues",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="run nothing: write the tables of benchmarks/results into benchmarks/README.md",
    )
    return parser.parse_args(arguments)


def _scale(text: str) -> float:
    scale = float(text)
    if not 0 < scale <= 10:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 10")
    return scale


@contextmanager
def _server() -> Iterator[EmbeddedServer]:
    """Run an embedded server with its default durability, in a temporary home."""
    folder = Path(tempfile.mkdtemp(prefix="feature_platform-"))
    folder.chmod(0o711)  # otherwise root's server does it, and logs it
    try:
        with EmbeddedServer(folder / "home") as server:
            yield server
    finally:
        shutil.rmtree(folder)


def _run(name: str, bench: Workbench) -> Result:
    print(f"{name} ...", flush=True)
    began = time.monotonic()
    result = BENCHMARKS[name](bench)
    for ratio in result.ratios:
        print(f"  {ratio.what}: {ratio.value:.2f}")
    for what, figure in result.figures.items():
        print(f"  {what}: {figure:,.0f}" if figure >= 100 else f"  {what}: {figure:.3g}")
    for what, taken in result.seconds.items():
        median = 1000 * statistics.median(taken)
        print(f"  {what}: {median:,.1f} ms, median of {len(taken)}")
    print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
    return result


def _print_machine(machine: Mapping[str, Any]) -> None:
    load = ", ".join(str(average) for average in machine["load_average_at_start"])
    print(
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gb']} GB,"
        f" PostgreSQL {machine['postgresql']}, load average {load}"
    )


if __name__ == "__main__":
    main()
