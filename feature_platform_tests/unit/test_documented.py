"""Every setting and command stands in the documentation, and no other does."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from typer.main import get_command

from feature_platform.cli import app
from feature_platform.settings import PREFIX, Settings
from feature_platform.simulator.faults import Fault
from feature_platform_tests.fix_embedded import CHECKOUT
from feature_platform_tests.unit.test_cli_errors import command_paths

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
ALL = README + "".join(
    path.read_text(encoding="utf-8") for path in sorted((CHECKOUT / "docs").glob("*.md"))
)
SETTINGS = sorted(PREFIX + name.upper() for name in Settings.model_fields)
KINDS = sorted(fault.model_fields["kind"].default for fault in get_args(Fault))
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_documented(kind: str) -> None:
    assert re.search(rf"^\|[^|]*`{kind}`[^|]*\|", ALL, re.MULTILINE)


def test_every_command_that_is_named_exists() -> None:
    known = {word for command in COMMANDS for word in (command, command.split()[0])}
    named = set(re.findall(r"\bfeature-platform ((?:db )?[a-z]+)", ALL))
    assert {name for name in named if name not in known} <= {"process"}  # a word of prose
