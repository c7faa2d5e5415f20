"""Guards against a compose file that is invalid, has passwords, or publishes ports."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feature_platform_tests.compose import (
    COMPOSE,
    DOCKERFILE,
    copied,
    example,
    let_through,
    required,
    services,
    variables,
)
from feature_platform_tests.fix_embedded import CHECKOUT
from feature_platform_tests.grafana import FOLDER
from feature_platform_tests.unit.test_grafana_files import provisioned

FILLED = example() | dict.fromkeys(required(), "0123456789abcdef")
SERVICES = services(FILLED)
OURS = [name for name, service in SERVICES.items() if "build" in service]

each_service = pytest.mark.parametrize("name", SERVICES)


def docker_compose(
    env_file: Path, values: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed (Debian: apt-get install docker-compose)")
    env_file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return subprocess.run(
        [program, "--env-file", env_file, "-f", COMPOSE, *arguments],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_file_follows_the_compose_specification() -> None:
    tool = Path(sys.executable).with_name("check-jsonschema")
    subprocess.run([tool, "--builtin-schema", "vendor.compose-spec", COMPOSE], check=True)


def test_docker_compose_accepts_the_file_with_every_password(tmp_path: Path) -> None:
    done = docker_compose(tmp_path / "env", FILLED, "config", "--services")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(SERVICES)


def test_docker_compose_rejects_the_file_without_a_password(tmp_path: Path) -> None:
    without = FILLED | {"FEATURE_PLATFORM_READER_PASSWORD": ""}
    done = docker_compose(tmp_path / "env", without, "config")
    assert done.returncode != 0
    assert "see .env.example" in done.stderr


def test_no_secret_has_a_default() -> None:
    secrets = {name for name in variables() if re.search("PASSWORD|KEY", name)}
    assert secrets == required()
    assert all(example()[name] == "" for name in secrets)
    assert variables() - {"IMAGE_TAG"} == example().keys() - {"COMPOSE_PROJECT_NAME"}


@each_service
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")
    if name == "code":
        assert "ports" not in SERVICES[name], "a client of Dagster's gRPC port can run code"


@each_service
def test_services_restart_and_their_logs_are_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == ("on-failure" if name == "set-up" else "unless-stopped")
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert "no-new-privileges:true" in service["security_opt"]


@each_service
def test_images_are_pinned(name: str) -> None:
    if name not in OURS:
        assert re.search(r":[a-z]*\d+\.\d+", SERVICES[name]["image"])


@pytest.mark.parametrize("name", [*OURS, "grafana"])
def test_containers_have_read_only_file_systems(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["tmpfs"] == ["/tmp"]


@each_service
def test_each_service_starts_after_its_dependencies(name: str) -> None:
    needs: dict[str, Any] = SERVICES[name].get("depends_on", {})
    assert needs or name == "db"
    for other, how in needs.items():
        ends = other == "set-up"
        expected = "service_completed_successfully" if ends else "service_healthy"
        assert how["condition"] == expected
        assert ends or "healthcheck" in SERVICES[other]


def test_each_service_connects_as_its_own_role() -> None:
    roles = {
        name: re.search(r"//(\w+)@db:", service["environment"]["FEATURE_PLATFORM_DATABASE_URL"])
        for name, service in SERVICES.items()
        if name in OURS
    }
    assert {name: found and found[1] for name, found in roles.items()} == {
        "set-up": "feature_platform_orchestrator",
        "recorder": "feature_platform_recorder",
        "worker": "feature_platform_refresher",
        "code": "feature_platform_orchestrator",
        "daemon": "feature_platform_orchestrator",
        "webserver": "feature_platform_orchestrator",
        "serve": "feature_platform_reader",
    }


def test_the_files_that_the_image_copies_exist() -> None:
    assert set(copied()) == let_through()
    assert all((CHECKOUT / path).exists() for path in copied())


def test_the_image_runs_as_an_unprivileged_user() -> None:
    (user,) = re.findall(r"^USER (\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert user == "10001:10001"


def test_grafana_has_its_provisioning_files() -> None:
    mounts = dict(
        mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"] if mount[0] == "."
    )
    assert {(CHECKOUT / path).resolve() for path in mounts} == {
        FOLDER / "provisioning",
        FOLDER / "dashboards",
    }
    (provider,) = provisioned("dashboards")["providers"]
    assert provider["options"]["path"] in mounts.values()
    (source,) = provisioned("datasources")["datasources"]
    needed = set(re.findall(r"\$(\w+)", str(source)))
    assert needed <= SERVICES["grafana"]["environment"].keys()
