"""Every setting and command stands in the documentation, and no other does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

import feature_platform
from feature_platform.cli.app import app
from feature_platform.importer.layouts import HEADERS, LAYOUTS
from feature_platform.settings import PREFIX, Settings
from feature_platform.simulator.faults import Fault
from feature_platform.validation import CHECKS
from feature_platform_tests.fix_embedded import CHECKOUT
from feature_platform_tests.unit.test_cli_errors import command_paths

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
ALL = README + "".join(
    path.read_text(encoding="utf-8") for path in sorted((CHECKOUT / "docs").glob("*.md"))
)
SETTINGS = sorted(PREFIX + name.upper() for name in Settings.model_fields)
KINDS = sorted(fault.model_fields["kind"].default for fault in get_args(Fault))
CHECKS_PAGE = (CHECKOUT / "docs" / "checks.md").read_text(encoding="utf-8")
# The definitions of Dagster: another test keeps the file equal to them.
DEFINITIONS = json.loads(
    (Path(__file__).parents[1] / "definitions.json").read_text(encoding="utf-8")
)
COMMANDS = sorted(" ".join(path) for path in command_paths(get_command(app)))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_one_line_in_the_readme(name: str) -> None:
    lines = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(lines) == 1


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(rf"{PREFIX}[A-Z_]+", ALL))
    assert {name for name in named if not name.startswith(f"{PREFIX}TEST_")} <= set(SETTINGS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"\bfeature-platform {command}\b", ALL)


IMPORTING = (CHECKOUT / "docs" / "importing.md").read_text(encoding="utf-8")
IMPORT_OPTIONS = sorted(
    option
    for parameter in get_command(app).commands["import"].params  # type: ignore[attr-defined]
    for option in parameter.opts
    if option.startswith("--")
)
IMPORT_LAYOUTS = [
    *(order.name for order in LAYOUTS),
    *HEADERS,
    "columns by name",
    "columns by position",
]
IMPORT_EXAMPLES = sorted(
    path.name for path in (CHECKOUT / "feature_platform_tests" / "data" / "import").iterdir()
)


@pytest.mark.parametrize("option", IMPORT_OPTIONS)
def test_every_option_of_the_import_has_its_example(option: str) -> None:
    rows = re.findall(rf"^\| `{option}` \| .+ \| (.+) \|$", IMPORTING, re.MULTILINE)
    assert [option in example for example in rows] == [True]


@pytest.mark.parametrize("layout", IMPORT_LAYOUTS)
def test_every_layout_of_the_import_has_its_example(layout: str) -> None:
    assert re.search(rf"^\| {re.escape(layout)} \| .+ \| `.+` \|$", IMPORTING, re.MULTILINE)


@pytest.mark.parametrize("example", IMPORT_EXAMPLES)
def test_every_example_of_the_import_is_named(example: str) -> None:
    assert f"`{example}`" in IMPORTING


def test_every_rule_of_the_import_has_its_example() -> None:
    section = IMPORTING.split("## Rules")[1].split("## ")[0]
    rules = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rules) >= 15
    assert all(len(cells) == 2 and len(cells[1]) > 8 for cells in rules)


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_documented(kind: str) -> None:
    assert re.search(rf"^\|[^|]*`{kind}`[^|]*\|", ALL, re.MULTILINE)


def test_every_command_that_is_named_exists() -> None:
    known = {word for command in COMMANDS for word in (command, command.split()[0])}
    named = set(re.findall(r"\bfeature-platform ((?:db )?[a-z]+)", ALL))
    assert {name for name in named if name not in known} <= {"process"}  # a word of prose


def test_every_check_has_its_section_and_no_other_has() -> None:
    sections = re.findall(r"^## `(\w+)`$", CHECKS_PAGE, re.MULTILINE)
    assert sorted(sections) == sorted(check.name for check in CHECKS)
    bodies = re.split(r"^## .*$", CHECKS_PAGE, flags=re.MULTILINE)[1:]
    assert all(body.strip() for body in bodies)


@pytest.mark.parametrize("kind", ["asset", "job", "schedule", "sensor"])
def test_every_dagster_definition_is_in_the_tables_of_the_docs(kind: str) -> None:
    names = DEFINITIONS[f"{kind}s"]
    assert names
    for name in names:
        assert re.search(rf"^\|.*\b{kind} `{name}`.*\|$", CHECKS_PAGE, re.MULTILINE), name
        reference = (CHECKOUT / "docs" / "reference.md").read_text(encoding="utf-8")
        assert re.search(rf"^\| `{name}` \|", reference, re.MULTILINE), name


@pytest.mark.parametrize("name", sorted({*feature_platform.__all__} - {"__version__"}))
def test_every_function_of_the_package_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\(", ALL)
