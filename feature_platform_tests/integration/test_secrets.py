"""Guards against passwords in logs, process lists, errors and the UI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from feature_platform import schema
from feature_platform.embedded.server import EmbeddedServer
from feature_platform.orchestration.instance import prepare_instance
from feature_platform.roles import ROLES, role_name, set_logins
from feature_platform.settings import Settings
from feature_platform_tests.fix_environment import passable_directory
from feature_platform_tests.fix_processes import WorkerProcess, only_line, run, value

# Characters that are special in a URL, a shell, SQL or libpq's quoting.
PASSWORDS = {role: f"s3cr3t'{role}\\ $@:/%41é" for role in ROLES if role != "owner"}
IN_ENVIRONMENT = {
    f"FEATURE_PLATFORM_{role.upper()}_PASSWORD": password for role, password in PASSWORDS.items()
}


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedServer]:
    """Yield a server that requires passwords except from the superuser, and logs all statements.

    `db logins` has set its logins.
    """
    with passable_directory() as home:
        rules = home / "hba.conf"
        rules.write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        rules.chmod(0o644)
        conf = {"fsync": "off", "hba_file": str(rules), "log_statement": "all"}
        with EmbeddedServer(home, conf=conf) as server:
            with psycopg.connect(server.url(), autocommit=True) as connection:
                schema.apply(connection)
            done = run("db", "logins", FEATURE_PLATFORM_DATABASE_URL=server.url(), **IN_ENVIRONMENT)
            assert (done.returncode, done.stderr) == (0, "")
            names = ", ".join(role_name(role) for role in PASSWORDS)
            assert done.stdout == f"can log in: {names}\n"
            yield server


def login(server: EmbeddedServer, role: str, password: str | None = None) -> str:
    password = PASSWORDS[role] if password is None else password
    return make_conninfo(server.url(), user=role_name(role), password=password)


def logs(server: EmbeddedServer) -> str:
    return "".join(path.read_text() for path in server.home.rglob("*.log"))


def test_each_role_logs_in_only_with_its_password(guarded: EmbeddedServer) -> None:
    for role, password in PASSWORDS.items():
        with psycopg.connect(login(guarded, role)) as connection:
            assert connection.info.user == role_name(role)
            assert value(connection, "SELECT max(version) FROM feature_platform.schema_version")
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            psycopg.connect(login(guarded, role, password + "x"))
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(make_conninfo(guarded.url(), user=role_name("owner"), password="x"))


def test_only_the_given_passwords_are_changed(guarded: EmbeddedServer) -> None:
    changed = Settings(reader_password=SecretStr("another"))
    with psycopg.connect(guarded.url(), autocommit=True) as connection:
        assert set_logins(connection, changed) == (role_name("reader"),)
        for password, role in (("another", "reader"), (None, "recorder")):
            psycopg.connect(login(guarded, role, password)).close()
        set_logins(connection, Settings(reader_password=SecretStr(PASSWORDS["reader"])))
    done = run("db", "logins", FEATURE_PLATFORM_DATABASE_URL=guarded.url())
    assert (done.returncode, done.stdout) == (2, "")
    assert "set some of FEATURE_PLATFORM_OWNER_PASSWORD, " in only_line(done.stderr)


def test_a_user_without_rights_cannot_set_logins(guarded: EmbeddedServer) -> None:
    reader = login(guarded, "reader")
    done = run("db", "logins", FEATURE_PLATFORM_DATABASE_URL=reader, **IN_ENVIRONMENT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "need a superuser or a user with CREATEROLE" in only_line(done.stderr)
    assert "s3cr3t" not in done.stderr


def test_dagster_uses_a_database_of_the_orchestrator(
    guarded: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = login(guarded, "orchestrator")
    settings = Settings(database_url=SecretStr(url), home=tmp_path)
    for name, text in prepare_instance(settings).items():
        monkeypatch.setenv(name, text)
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        assert instance.get_runs_count() == 0
        assert "s3cr3t" not in instance.info_str()  # the UI shows this text
    assert "s3cr3t" not in (tmp_path / "dagster" / "dagster.yaml").read_text()


def test_no_process_shows_a_password(guarded: EmbeddedServer) -> None:
    with WorkerProcess(FEATURE_PLATFORM_DATABASE_URL=login(guarded, "refresher")) as worker:
        worker.wait_for("active")
        done = run(
            "db",
            "psql",
            "--",
            "-Xc",
            "SELECT current_user",
            "-c",
            "\\! cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' ' '",
            FEATURE_PLATFORM_DATABASE_URL=login(guarded, "reader"),
        )
        assert done.returncode == 0, done.stderr
        assert role_name("reader") in done.stdout
        assert "worker" in done.stdout  # the list has our processes
        log = worker.stop()
    assert "s3cr3t" not in done.stdout + done.stderr + log


def test_no_error_shows_a_password(guarded: EmbeddedServer) -> None:
    for wrong in (
        login(guarded, "reader", "s3cr3t, but wrong"),
        make_conninfo(login(guarded, "reader"), host="/nowhere"),
        f"postgresql://feature_platform_reader:{PASSWORDS['reader']}@127.0.0.1:1/x",
        f"host=/nowhere password={PASSWORDS['reader']}",
    ):
        done = run("--verbose", "status", FEATURE_PLATFORM_DATABASE_URL=wrong)
        assert done.returncode == 2
        assert "s3cr3t" not in done.stdout + done.stderr


def test_the_server_logs_no_password(guarded: EmbeddedServer) -> None:
    text = logs(guarded)
    assert "ALTER ROLE" in text
    assert "s3cr3t" not in text
