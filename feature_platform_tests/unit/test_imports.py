"""Guards against slow starts by libraries that another part needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import feature_platform

PACKAGE = Path(feature_platform.__file__).parent
# The files or packages that may import a library, also at their own import.
OWNERS = {
    "ccxt": ("exchange/", "symbols.py"),
    "websockets": ("simulator/",),
    "honcho": ("dev/",),
    "matplotlib": ("plot.py",),
    "PIL": ("plot.py",),
    "scipy": ("drift.py",),
    "dagster": ("orchestration/", "definitions.py"),
    "duckdb": ("importer/", "lake/"),
    "ray": ("lake/engines.py",),
}
# The modules of a host that only reads, and of commands that must start quickly.
READERS = [
    "feature_platform.frames",
    "feature_platform.cli.app",
    "feature_platform.cli.top",
    "feature_platform.service.server",
    "feature_platform.status",
    "feature_platform.verify",
    "feature_platform.plot",
    "feature_platform.worker",
]


def _modules_after(code: str) -> set[str]:
    shown = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", READERS)
def test_a_reading_module_imports_no_library_of_another_part(module: str) -> None:
    assert not _modules_after(f"import {module}") & set(OWNERS)


def test_the_code_location_imports_no_library_of_exchanges_or_pictures() -> None:
    """Dagster loads it in each run, and ccxt and pandas take a third of that time."""
    loaded = _modules_after("import feature_platform.definitions")
    assert "dagster" in loaded
    assert not loaded & {*OWNERS, "pandas", "numpy"} - {"dagster"}


def test_read_features_is_imported_without_a_slow_library() -> None:
    """The import takes some 0.2 s of a processor; with pandas, pyarrow and ADBC it took 0.8 s."""
    code = "from feature_platform import read_features"
    seconds = []
    for _ in range(3):
        timed = f"{code}; import time; print(time.process_time())"
        done = subprocess.run([sys.executable, "-c", timed], capture_output=True, check=True)
        seconds.append(float(done.stdout))
    assert min(seconds) <= 0.5, seconds
    slow = {"pandas", "numpy", "pyarrow", "polars", "adbc_driver_manager", "pydantic", "fastapi"}
    assert not _modules_after(code) & (slow | set(OWNERS))


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_a_library_is_imported_by_its_part_only(library: str) -> None:
    importers = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if library in {name.partition(".")[0] for name in names}:
                importers.add(path.relative_to(PACKAGE).as_posix())
    assert importers
    assert {name for name in importers if not name.startswith(OWNERS[library])} == set()
