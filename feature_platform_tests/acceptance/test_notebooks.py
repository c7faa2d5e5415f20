"""The notebooks run from top to bottom, as they are, on a machine that has no data yet."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from feature_platform_tests.fix_embedded import CHECKOUT, is_running
from feature_platform_tests.fix_environment import passable_directory

EXAMPLES = CHECKOUT / "examples"
NOTEBOOKS = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))
PATIENCE = 300  # seconds, a cell

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def common_home() -> Iterator[Path]:
    """Yield a home without a database; the first notebook makes one, the next finds it."""
    with passable_directory() as parent:
        yield parent / "home"


def run(name: str, twice: int = 0) -> Any:
    """Run a notebook in a kernel of its own; return it with its outputs.

    twice: how many of the last cells of code run a second time at once, as users do by mistake.
    """
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    again = {cell.id for cell in code[len(code) - twice :]}
    notebook.cells = [
        nbformat.from_dict({**cell, "id": f"{cell.id}{suffix}"})
        for cell in notebook.cells
        for suffix in (("", "-again") if cell.id in again else ("",))
    ]
    client = NotebookClient(
        notebook,
        timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(EXAMPLES)}},
    )
    return client.execute()


def shown(notebook: Any, kind: str) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    if kind == "stdout":
        return [output.text for output in outputs if output.get("name") == kind]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def warned(notebook: Any) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.text for output in outputs if output.get("name") == "stderr"]


def has_colour(picture: str, colour: tuple[int, int, int]) -> bool:
    """Return whether a part of a picture has about this colour."""
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(picture))).convert("RGB"), dtype=int)
    near = np.abs(pixels - colour).sum(axis=2) < 40
    return bool(near.mean() > 0.001)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_what_it_shows(name: str) -> None:
    path = EXAMPLES / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.execution_count is None and cell.outputs == [] for cell in cells)
    assert path.stat().st_size < 50_000


def test_the_features_are_looked_at(common_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", str(common_home))
    notebook = run("features")
    assert warned(notebook) == []
    pictures = shown(notebook, "image/png")
    assert len(pictures) == 5
    # Missing minutes stand out in yellow: shaded over white, and on the map of days as it is.
    assert all(has_colour(pictures[number], (247, 217, 148)) for number in (0, 2, 3))
    assert has_colour(pictures[1], (242, 193, 78))
    assert not has_colour(pictures[4], (242, 193, 78))
    tables = "".join(shown(notebook, "text/plain"))
    assert "ALPHA/USDT" in tables
    assert "150" in tables  # the minutes of the outage that stays
    assert not is_running(common_home)


def test_the_backtest_says_what_a_random_walk_earns(
    common_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", str(common_home))
    notebook = run("backtest")
    assert warned(notebook) == []
    assert len(shown(notebook, "image/png")) == 1
    said = "".join(shown(notebook, "stdout"))
    assert "44,490 bars" in said
    assert "a round trip costs 14 bp" in said
    assert "it does not pay for its costs" in said


def test_the_training_notebook_shows_the_leak() -> None:
    notebook = run("training", twice=2)
    assert warned(notebook) == []
    pictures = shown(notebook, "image/png")
    assert len(pictures) == 2
    assert all(has_colour(picture, (192, 57, 43)) for picture in pictures)
    said = "".join(shown(notebook, "stdout"))
    earned = {
        name: float(re.search(rf"{name}: \d+ trades, ([+-][\d.]+) bp", said)[1])  # type: ignore[index]
        for name in (
            "trained on repaired history, its backtest",
            "trained on repaired history, live",
            "trained on what was known, live",
        )
    }
    backtest, live, honest = earned.values()
    assert backtest > 20
    assert live < honest
    assert live < backtest / 3
    assert said.count("no feature changed") == 2
