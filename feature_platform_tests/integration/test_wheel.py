"""Guards against a wheel that lacks files, or that works only beside a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import psycopg
import pytest

from feature_platform_tests.fix_embedded import CHECKOUT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and return its path."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, CHECKOUT)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `feature-platform` of an environment with the wheel and without the checkout."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(place)
    python = place / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--disable-pip-version-check", "--no-index", "--no-deps", wheel)
    # Dependencies come from the tests' environment. Only its directory is added, so that the
    # path file of an editable install of the checkout is not read.
    here = sysconfig.get_path("purelib", vars={"base": str(place)})
    (Path(here) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = run(python, "-c", "import feature_platform; print(feature_platform.__file__)")
    assert Path(found.strip()).is_relative_to(place)
    return place / "bin" / "feature-platform"


def run(*command: str | Path, cwd: Path = Path("/"), **environment: str) -> str:
    """Run a command and return its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_the_sql_files(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        f"feature_platform/{path.relative_to(CHECKOUT)}"
        for path in (CHECKOUT / "sql").rglob("*.sql")
    }
    assert "feature_platform/sql/queries/core.sql" in expected
    assert expected <= names
    assert not {name for name in names if name.startswith(("sql/", "feature_platform_tests/"))}
    assert "feature_platform/py.typed" in names


def test_the_wheel_sets_up_the_embedded_database(program: Path, home: Path) -> None:
    """The home is not in pytest's directory, which other OS users cannot enter."""
    url = run(program, "db", "url", cwd=home.parent, FEATURE_PLATFORM_HOME=home.name)
    assert url.startswith("postgresql://postgres@/feature_platform?host=")
    assert (home / "postgres" / "PG_VERSION").exists()
    run(program, "db", "apply", cwd=home.parent, FEATURE_PLATFORM_HOME=home.name)
    count = ["-At", "-c", "SELECT count(*) FROM features_1m"]
    assert (
        run(program, "db", "psql", "--", *count, cwd=home.parent, FEATURE_PLATFORM_HOME=home.name)
        == "0\n"
    )


VIEWS = """
from feature_platform.views import FeatureView, bar, ema, mean

trend = FeatureView(
    "trend_1m",
    "1 minute",
    {"mean_3m": mean(bar.close, "3 minutes"), "ema_3m": ema(bar.vol, "3 minutes")},
)
"""


def test_the_wheel_applies_builds_and_verifies_views(
    program: Path, empty_database: str, tmp_path: Path
) -> None:
    def output(*command: str | Path) -> str:
        return run(program, *command, cwd=tmp_path, FEATURE_PLATFORM_DATABASE_URL=empty_database)

    views, bars = tmp_path / "mine.py", tmp_path / "bars.csv"
    views.write_text(VIEWS)
    rows = [f"2026-02-01T00:{minute:02}Z,10,12,9,{10 + minute % 3},1" for minute in range(60)]
    bars.write_text("\n".join(["ts,open,high,low,close,vol", *rows]))
    output("db", "apply")
    output("import", bars, "--symbol", "A")
    assert "trend_1m: new, version 1, 2 columns" in output("views", "plan", views)
    assert "60 rows written" in output("views", "apply", views)
    assert "trend_1m" in output("views", "list")
    assert "120 rows of 1 symbol in features_1m and 1 view checked, all equal" in output("verify")


def test_the_wheel_sets_up_a_configured_database(
    program: Path, empty_database: str, tmp_path: Path
) -> None:
    for _ in range(2):
        run(program, "db", "apply", cwd=tmp_path, FEATURE_PLATFORM_DATABASE_URL=empty_database)
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM ohlcv_1m").fetchone() == (0,)
    assert not (tmp_path / ".feature_platform").exists()
