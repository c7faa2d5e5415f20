"""Guards against a second server in one home, a server that outlives its users, and a lost one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from feature_platform.embedded.server import EmbeddedServer, bin_dir, embedded_server
from feature_platform_tests.fix_embedded import (
    FAST,
    Hold,
    Holder,
    User,
    is_running,
    postmaster_pid,
    use_until_it_ends,
    wait_until_dead,
)


def started_at(url: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_postmaster_start_time()").fetchone()
    assert row is not None
    return row[0]


def test_the_server_stops_when_its_last_user_exits(home: Path, hold: Hold) -> None:
    first = hold(home)
    assert first.first_line.startswith("postgresql://")
    second = hold(home)
    assert second.first_line == first.first_line
    assert first.exit() == ""
    assert is_running(home)
    assert started_at(second.first_line)
    assert second.exit() == ""
    assert not is_running(home)
    assert not (home / "postgres" / "postmaster.pid").exists()


def test_processes_that_start_at_once_share_one_server(home: Path, hold: Hold) -> None:
    holders = [hold(home) for _ in range(5)]
    assert len({started_at(holder.first_line) for holder in holders}) == 1
    for holder in holders:
        assert holder.exit() == ""
    assert not is_running(home)


def test_starts_and_stops_at_once_never_fail(home: Path, user: User) -> None:
    """Each process may find the server absent, starting, running or stopping."""
    code = """
import sys
from pathlib import Path
import psycopg
from feature_platform.embedded.server import EmbeddedServer

for _ in range(10):
    with EmbeddedServer(Path(sys.argv[1]), conf={"fsync": "off"}) as server:
        with psycopg.connect(server.url()) as connection:
            connection.execute("SELECT 1")
"""
    runs = [user.popen(code, home) for _ in range(4)]
    assert [run.communicate(timeout=120)[1] for run in runs] == [""] * 4
    assert not is_running(home)


@pytest.mark.usefixtures("existing_data")
def test_the_server_survives_a_kill_of_its_first_user(home: Path, hold: Hold) -> None:
    starter = hold(home)
    before = started_at(starter.first_line)
    starter.kill()
    assert is_running(home)
    second = hold(home)
    assert started_at(second.first_line) == before
    assert second.exit() == ""
    assert not is_running(home)


@pytest.mark.parametrize("moment", ["postgres.new", "postgres", "postgres/postmaster.pid"])
def test_the_next_start_repairs_a_start_that_was_killed(
    home: Path, hold: Hold, moment: str
) -> None:
    starter = hold(home)
    while not (home / moment).exists():
        assert starter.process.poll() is None
        time.sleep(0.001)
    starter.kill()
    second = hold(home)
    assert started_at(second.first_line)
    assert second.exit() == ""
    assert not is_running(home)
    assert not (home / "postgres.new").exists()


@pytest.mark.usefixtures("existing_data")
def test_the_next_start_repairs_a_stop_that_was_killed(home: Path, hold: Hold) -> None:
    first = hold(home)
    with psycopg.connect(first.first_line) as connection:  # it ends when the stop has begun
        first.begin_to_exit()
        with pytest.raises(psycopg.OperationalError):
            use_until_it_ends(connection)
    first.kill()
    second = hold(home)
    assert started_at(second.first_line)
    assert second.exit() == ""
    assert not is_running(home)


@pytest.mark.usefixtures("existing_data")
def test_ctrl_c_ends_the_first_user_and_not_the_server(home: Path, hold: Hold) -> None:
    starter, second = hold(home), hold(home)
    assert starter.first_line == second.first_line
    with psycopg.connect(second.first_line) as connection:
        os.killpg(starter.process.pid, signal.SIGINT)  # as a terminal does
        assert "KeyboardInterrupt" in starter.exit()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert second.exit() == ""
    assert not is_running(home)


@pytest.mark.usefixtures("existing_data")
def test_the_server_holds_only_its_own_lock_file(home: Path, hold: Hold) -> None:
    assert hold(home).first_line
    folder = Path(f"/proc/{postmaster_pid(home)}/fd")
    if not folder.exists():
        pytest.skip("this system has no /proc")
    open_files = {str(entry.readlink()) for entry in folder.iterdir()}
    locks = {path for path in open_files if path.endswith(".lock") and str(home) in path}
    assert locks - {f"{home}/postgres.socket/.s.PGSQL.5432.lock"} == {
        f"{home}/postgres.server.lock"
    }


@pytest.mark.usefixtures("existing_data")
def test_the_exit_of_a_forked_child_does_not_stop_the_server(home: Path, user: User) -> None:
    code = """
import os, sys
from pathlib import Path
import psycopg
from feature_platform.embedded.server import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]), conf={"fsync": "off"})
server.start()
child = os.fork()
if child == 0:
    server.release()
    sys.exit(0)  # runs the functions that are registered for the exit
assert os.waitpid(child, 0)[1] == 0
with psycopg.connect(server.url()) as connection:
    connection.execute("SELECT 1")
"""
    with user.popen(code, home) as run:
        assert run.communicate(timeout=60)[1] == ""
    assert run.returncode == 0
    assert not is_running(home)


@pytest.mark.usefixtures("existing_data")
def test_a_forked_child_that_starts_the_server_holds_it(home: Path, user: User) -> None:
    code = """
import os, sys
from pathlib import Path
from feature_platform.embedded.server import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]), conf={"fsync": "off"})
server.start()
ready, signal_ready = os.pipe()
if os.fork() == 0:
    server.start()
    os.write(signal_ready, b"!")
    sys.stdin.read()
    sys.exit(0)
os.read(ready, 1)
print(server.url(), flush=True)
os._exit(server.release() or 0)
"""
    with Holder(user, home, code) as family:
        url = family.first_line
        family.process.wait(timeout=60)
        assert started_at(url)
        family.process.communicate(timeout=60)
    wait_until_dead(home)


def test_a_start_after_a_crash_recovers_the_data(server: EmbeddedServer, home: Path) -> None:
    server.start()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
        connection.execute("CHECKPOINT")
        connection.execute("INSERT INTO kept VALUES (2)")
        os.kill(postmaster_pid(home), signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            use_until_it_ends(connection)
    server.start()
    with psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT sum(x) FROM kept").fetchone() == (3,)


@pytest.mark.usefixtures("existing_data")
def test_a_recycled_process_id_does_not_prevent_a_start(home: Path, hold: Hold) -> None:
    first = hold(home)
    assert first.first_line
    os.kill(postmaster_pid(home), signal.SIGKILL)
    wait_until_dead(home)
    # The files now have the process id of another process of the same user, the holder.
    for path in (
        home / "postgres" / "postmaster.pid",
        home / "postgres.socket" / ".s.PGSQL.5432.lock",
    ):
        _, rest = path.read_text().split("\n", 1)
        path.write_text(f"{first.process.pid}\n{rest}")
    second = hold(home)
    assert started_at(second.first_line)
    assert second.exit() == ""
    assert first.process.poll() is None
    assert first.exit() == ""
    assert not is_running(home)


@pytest.mark.usefixtures("existing_data")
def test_a_stop_does_not_end_another_process_of_the_same_id(home: Path, hold: Hold) -> None:
    first = hold(home)
    assert first.first_line
    os.kill(postmaster_pid(home), signal.SIGKILL)
    wait_until_dead(home)
    with subprocess.Popen(["sleep", "600"]) as bystander:
        path = home / "postgres" / "postmaster.pid"
        _, rest = path.read_text().split("\n", 1)
        path.write_text(f"{bystander.pid}\n{rest}")
        assert first.exit() == ""
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.usefixtures("existing_data")
def test_a_server_that_was_started_by_hand_is_not_used_or_stopped(home: Path, hold: Hold) -> None:
    assert hold(home).exit() == ""
    data = home / "postgres"
    owner = data.stat()
    conf = home.parent / "other.conf"
    conf.write_text(f"listen_addresses = ''\nunix_socket_directories = '{data}'\n")
    as_owner = (
        {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        if os.geteuid() == 0
        else {}
    )
    with subprocess.Popen(
        [bin_dir() / "postgres", "-D", data, "-c", f"config_file={conf}"],
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **as_owner,  # type: ignore[call-overload]
    ) as by_hand:
        while not (data / "postmaster.pid").exists():
            assert by_hand.poll() is None
            time.sleep(0.01)
        rejected = hold(home)
        assert f"(process {by_hand.pid})" in rejected.first_line
        assert "stop it first" in rejected.first_line
        assert by_hand.poll() is None
        rejected.exit()
        by_hand.send_signal(signal.SIGINT)


def test_one_home_has_one_server_object(home: Path) -> None:
    home.mkdir()
    assert embedded_server(home) is embedded_server(home / ".." / home.name)


@pytest.mark.usefixtures("existing_data")
def test_start_and_release_can_be_repeated(home: Path) -> None:
    server = EmbeddedServer(home, conf=FAST)
    for _ in range(2):
        server.start()
        server.start()
        assert is_running(home)
        server.release()
        server.release()
        assert not is_running(home)
    with server:
        assert not server.is_kept
    assert not is_running(home)


KEEP = """
import sys
from pathlib import Path
from feature_platform.embedded.server import EmbeddedServer

EmbeddedServer(Path(sys.argv[1]), conf={"fsync": "off", "shared_buffers": "16MB"}).keep()
"""
STOP = """
import sys
from pathlib import Path
from feature_platform.embedded.server import EmbeddedServer

print(EmbeddedServer(Path(sys.argv[1])).stop())
"""


def run_as_user(user: User, code: str, home: Path) -> str:
    """Run code as a user to its end; return its output."""
    output, errors = user.popen(code, home).communicate(timeout=60)
    assert errors == ""
    return output.strip()


@pytest.mark.usefixtures("existing_data")
def test_a_kept_server_stays_until_it_is_stopped(home: Path, user: User, hold: Hold) -> None:
    run_as_user(user, KEEP, home)
    assert EmbeddedServer(home).is_kept
    before = started_at(EmbeddedServer(home).url())
    holder = hold(home)
    assert started_at(holder.first_line) == before
    assert holder.exit() == ""
    assert is_running(home)
    assert run_as_user(user, STOP, home) == "True"
    assert not is_running(home)
    assert not EmbeddedServer(home).is_kept


@pytest.mark.usefixtures("existing_data")
def test_a_stopped_server_runs_until_its_last_user_exits(
    home: Path, user: User, hold: Hold
) -> None:
    run_as_user(user, KEEP, home)
    holder = hold(home)
    assert started_at(holder.first_line)
    assert run_as_user(user, STOP, home) == "False"
    assert started_at(holder.first_line)
    assert holder.exit() == ""
    assert not is_running(home)


@pytest.mark.usefixtures("existing_data")
def test_a_kept_server_is_kept_again_after_a_kill(home: Path, user: User, hold: Hold) -> None:
    run_as_user(user, KEEP, home)
    os.kill(postmaster_pid(home), signal.SIGKILL)
    wait_until_dead(home)
    holder = hold(home)
    assert started_at(holder.first_line)
    assert holder.exit() == ""
    assert is_running(home)
    assert run_as_user(user, STOP, home) == "True"
    assert not is_running(home)


def test_a_stop_without_a_server_creates_no_directory(home: Path) -> None:
    missing = home / "missing"
    assert EmbeddedServer(missing).stop()
    assert not missing.exists()


@pytest.mark.usefixtures("existing_data")
def test_a_removed_home_causes_no_error_at_the_exit(home: Path) -> None:
    code = """
import shutil, sys
from pathlib import Path
from feature_platform.embedded.server import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]), conf={"fsync": "off"})
server.start()
print((server.home / "postgres" / "postmaster.pid").read_text(), flush=True)
shutil.rmtree(server.home)
"""
    with User(None, sys.executable).popen(code, home) as run:
        output, errors = run.communicate(timeout=60)
    os.kill(int(output.split("\n", 1)[0]), signal.SIGKILL)
    assert errors == ""
    assert run.returncode == 0
