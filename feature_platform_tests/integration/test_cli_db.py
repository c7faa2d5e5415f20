"""Guards against commands without clear output, exit status or clean end, by those of `db`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from feature_platform.embedded.server import EmbeddedServer
from feature_platform_tests.fix_embedded import is_running

SECRET = "s3cr3t"
COMMAND = [sys.executable, "-W", "error", "-m", "feature_platform.cli.app"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys, feature_platform.cli.app; "
        "print(*{'psycopg', 'pandas', 'pyarrow', 'matplotlib', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == "feature-platform 0.1.0\n"


def test_an_unknown_command_is_a_usage_error() -> None:
    done = run("db", "nonsense")
    assert done.returncode == 2
    assert "No such command 'nonsense'" in done.stderr


def test_a_bad_setting_gets_one_line() -> None:
    done = run("db", "url", FEATURE_PLATFORM_DATABASE_URL=f"postgresql://me:{SECRET}@h:x/db")
    assert done.returncode == 2
    assert only_line(done.stderr).startswith("feature-platform: FEATURE_PLATFORM_DATABASE_URL: ")
    assert SECRET not in done.stderr + done.stdout


def test_an_unreachable_server_gets_one_line() -> None:
    url = f"postgresql://me:{SECRET}@localhost:1/db"
    done = run("db", "apply", FEATURE_PLATFORM_DATABASE_URL=url)
    assert done.returncode == 2
    line = only_line(done.stderr)
    assert line.startswith("feature-platform: cannot connect to postgresql://me:***@localhost:1/db")
    assert SECRET not in done.stderr + done.stdout


def test_the_url_of_the_embedded_server_has_a_hint(own_home: Path) -> None:
    done = run("db", "url")
    assert done.returncode == 0
    assert only_line(done.stdout).startswith("postgresql://postgres@/feature_platform?host=")
    hint = done.stderr.splitlines()[-1]
    assert "runs only while a feature-platform process does" in hint
    assert "keep it running with `feature-platform db start`" in hint
    assert not is_running(own_home)


def test_a_started_server_stays_until_it_is_stopped(own_home: Path) -> None:
    try:
        done = run("db", "start")
        assert done.returncode == 0, done.stderr
        assert "until `feature-platform db stop`" in only_line(done.stdout)
        assert is_running(own_home)
        url = run("db", "url")
        assert url.stderr == ""
        with psycopg.connect(url.stdout.strip()) as connection:
            assert connection.execute("SELECT count(*) FROM features_1m").fetchone() == (0,)
        lines = run("status").stdout.splitlines()
        assert "embedded server: runs until `feature-platform db stop`" in lines
    finally:
        done = run("db", "stop")
    assert (done.returncode, done.stderr) == (0, "")
    assert only_line(done.stdout).endswith(" is stopped")
    assert not is_running(own_home)
    lines = run("status").stdout.splitlines()
    assert any("`feature-platform db start` keeps it running" in line for line in lines)


@pytest.mark.parametrize("command", ["start", "stop"])
def test_a_configured_server_is_not_started_or_stopped(command: str) -> None:
    url = f"postgresql://me:{SECRET}@db.example/bars"
    done = run("db", command, FEATURE_PLATFORM_DATABASE_URL=url)
    assert done.returncode == 2
    assert f"`feature-platform db {command}` is for the embedded server" in only_line(done.stderr)


def test_the_url_of_a_configured_server_has_no_hint() -> None:
    url = f"postgresql://me:{SECRET}@db.example/bars"
    done = run("db", "url", FEATURE_PLATFORM_DATABASE_URL=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{url}\n", "")


def test_the_psql_command_passes_arguments_and_exit_status(database: str) -> None:
    there = {"FEATURE_PLATFORM_DATABASE_URL": database}
    done = run("db", "psql", "--", "-X", "-At", "-c", "SELECT 6 * 7", **there)
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert run("db", "psql", "--", "-X", "-c", "SELECT 1 / 0", **there).returncode == 1
    assert run("db", "psql", "--", "-X", "-c", r"\! kill -9 $PPID", **there).returncode == 137


def test_psql_hides_the_password_from_the_process_list() -> None:
    url = f"postgresql://me:{SECRET}@localhost:1/db"
    done = run("db", "psql", "--", "--no-such-option", FEATURE_PLATFORM_DATABASE_URL=url)
    assert done.returncode == 1
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 129)]
)
def test_a_signal_to_the_psql_command_stops_the_server(
    own_home: Path, number: signal.Signals, status: int
) -> None:
    with subprocess.Popen(
        [*COMMAND, "db", "psql", "--", "-X", "-At"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("SELECT 'ready';\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        assert is_running(own_home)
        process.send_signal(number)
        assert process.wait(timeout=60) == status
    assert not is_running(own_home)


def test_ctrl_c_cancels_the_statement_of_psql(own_home: Path) -> None:
    """A terminal sends the signal to psql and to the command that runs psql."""
    with subprocess.Popen(
        [*COMMAND, "db", "psql", "--", "-X", "-At"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("SELECT 'ready';\nSELECT pg_sleep(600);\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        sleeping = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        with psycopg.connect(EmbeddedServer(own_home).url(), autocommit=True) as watcher:
            while watcher.execute(sleeping).fetchone() is None:
                assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "canceling statement due to user request" in errors
    assert "Traceback" not in errors
    assert process.returncode == 3  # psql's status of a script that Ctrl-C stopped
    assert not is_running(own_home)
