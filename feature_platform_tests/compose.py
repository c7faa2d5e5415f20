"""The compose file, with its variables filled in as `docker compose` does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from feature_platform_tests.fix_embedded import CHECKOUT

COMPOSE = CHECKOUT / "docker-compose.yml"
EXAMPLE = CHECKOUT / ".env.example"
DOCKERFILE = CHECKOUT / "Dockerfile"

_VARIABLE = re.compile(r"\$\{(?P<name>\w+):(?P<kind>[-?])(?P<text>[^}]*)\}")


def example() -> dict[str, str]:
    """Return the variables of .env.example and their values."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def required() -> set[str]:
    """Return the variables that the compose file requires."""
    text = COMPOSE.read_text(encoding="utf-8")
    return {found["name"] for found in _VARIABLE.finditer(text) if found["kind"] == "?"}


def variables() -> set[str]:
    """Return all variables of the compose file."""
    return {found["name"] for found in _VARIABLE.finditer(COMPOSE.read_text(encoding="utf-8"))}


def services(values: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the services with these values of the variables."""

    def fill(found: re.Match[str]) -> str:
        value = values.get(found["name"], "")
        assert value or found["kind"] == "-", f"{found['name']}: {found['text']}"
        return value or found["text"]

    def filled(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: filled(value) for key, value in part.items()}
        if isinstance(part, list):
            return [filled(value) for value in part]
        return _VARIABLE.sub(fill, part) if isinstance(part, str) else part

    document: dict[str, Any] = filled(yaml.safe_load(COMPOSE.read_text(encoding="utf-8")))
    found: dict[str, dict[str, Any]] = document["services"]
    return found


def image_environment() -> dict[str, str]:
    """Return the environment variables that the image sets."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text(encoding="utf-8"))
    last = text.rsplit("\nFROM ", 1)[1]
    pairs = [
        pair for line in re.findall(r"^ENV (.+)$", last, re.MULTILINE) for pair in line.split()
    ]
    return dict(pair.split("=", 1) for pair in pairs)


def copied() -> list[str]:
    """Return the paths of the checkout that the image copies."""
    lines = re.findall(
        r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE
    )
    words = [[word for word in line.split() if not word.startswith("--")] for line in lines]
    return [path for line in words for path in line[:-1]]


def let_through() -> set[str]:
    """Return the paths that .dockerignore does not exclude."""
    lines = Path(CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return {line[1:] for line in lines if line.startswith("!")}
