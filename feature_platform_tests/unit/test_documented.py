"""Guards against undocumented settings, commands and checks, and against pages of removed ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

import feature_platform
from benchmarks.__main__ import _parse as benchmarks_options
from feature_platform.cli.app import app
from feature_platform.dev.settings_page import settings_page
from feature_platform.importer.layouts import HEADERS, LAYOUTS
from feature_platform.settings import PREFIX, Settings
from feature_platform.simulator.faults import Fault
from feature_platform.validation import CHECKS, Check
from feature_platform_tests.fix_embedded import CHECKOUT
from feature_platform_tests.unit.test_cli_errors import command_paths

SETTINGS_PAGE = (CHECKOUT / "docs" / "settings.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(CHECKOUT).as_posix(): path.read_text(encoding="utf-8")
    for folder in (CHECKOUT, CHECKOUT / "docs", CHECKOUT / "benchmarks")
    for path in sorted(folder.glob("*.md"))
}
ALL = "".join(PAGES.values())
SETTINGS = sorted(PREFIX + name.upper() for name in Settings.model_fields)
KINDS = sorted(fault.model_fields["kind"].default for fault in get_args(Fault))
CHECKS_PAGE = (CHECKOUT / "docs" / "checks.md").read_text(encoding="utf-8")
# Dagster's definitions; another test keeps the file equal to them.
DEFINITIONS = json.loads(
    (Path(__file__).parents[1] / "definitions.json").read_text(encoding="utf-8")
)
COMMANDS = sorted(" ".join(path) for path in command_paths(get_command(app)))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_one_line_on_its_page(name: str) -> None:
    lines = [line for line in SETTINGS_PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(lines) == 1


def test_the_page_of_settings_is_generated_from_the_class() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    assert settings_page() == SETTINGS_PAGE, "run `make docs`"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_changelog_names_every_setting(name: str) -> None:
    assert f"`{name}`" in PAGES["CHANGELOG.md"]


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


def test_every_command_of_the_benchmarks_can_be_parsed() -> None:
    commands = re.findall(r"python -m benchmarks( [^`#\n]*)?[`#\n]", ALL)
    assert any("--only" in command for command in commands)
    for command in commands:
        benchmarks_options(command.split())


def test_every_call_of_the_retention_sets_all_ages() -> None:
    """A call removes the ages that it does not name."""
    ages = {"bars", "features", "gaps", "runs", "served", "versions"}
    calls = re.findall(r"set_features_1m_retention\(([^).]+)\)", ALL)
    assert calls
    for call in calls:
        assert set(re.findall(r"(\w+)(?: =>|,|$)", call)) >= ages, call


def test_every_command_that_is_named_exists() -> None:
    known = {word for command in COMMANDS for word in (command, command.split()[0])}
    # Commands may follow in one list: `feature-platform record`, `worker`.
    lists = re.findall(r"`feature-platform [a-z]+`((?:,? (?:and |or )?`[a-z]+`)+)", ALL)
    listed = {name for one in lists for name in re.findall(r"`([a-z]+)`", one)}
    named = set(re.findall(r"\bfeature-platform ((?:db )?[a-z]+)", ALL))
    named = {name for name in named | listed if name not in known}
    assert named <= {"process", "processes"}  # words of prose


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_of_a_page_has_its_target(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (CHECKOUT / page).parent / path if path else CHECKOUT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in _anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_points_to_sections_by_links(page: str) -> None:
    """A test checks links; a "see below" stays when its section moves."""
    assert not re.search(r"\bsee (?:below|above)\b", PAGES[page])


def test_every_page_is_in_the_readme() -> None:
    for path in sorted((CHECKOUT / "docs").glob("*.md")):
        assert f"](docs/{path.name})" in PAGES["README.md"], path.name


def test_terms_have_an_explanation() -> None:
    for term in ("lag", "loopback", "policy", "refresh", "stream", "embedded server"):
        assert re.search(rf"^\| {term} \| \w", PAGES["docs/index.md"], re.MULTILINE), term


def test_the_readme_lists_the_pages_in_a_table() -> None:
    for line in PAGES["README.md"].splitlines():
        assert len(re.findall(r"\]\(docs/\w+\.md", line)) <= 2


def test_a_page_names_a_default_only_by_its_setting() -> None:
    """The number of attempts is a setting, so its default in a page can become wrong."""
    attempts = re.compile(r"\b(?:ten|10) attempts\b")
    assert [page for page, text in PAGES.items() if attempts.search(text)] == []
    assert f"{PREFIX}GAP_ATTEMPTS" in CHECKS_PAGE


@pytest.mark.parametrize(
    "check",
    [check for check in CHECKS if check.name in ("bars_fresh", "features_rows", "features_fresh")],
)
def test_the_page_of_checks_names_symbols_that_a_check_ignores(check: Check) -> None:
    body = CHECKS_PAGE.split(f"## `{check.name}`\n", 1)[1].split("\n## ", 1)[0]
    assert "never fresh" not in body
    assert "not recorded" in body or "recorded symbol" in body


def test_the_sections_of_the_page_of_checks_are_the_checks() -> None:
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
