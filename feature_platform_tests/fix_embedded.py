"""Processes that use an embedded server, as root and as a normal user."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Self

import psutil
import psycopg
import pytest

import feature_platform
from feature_platform.embedded.server import EmbeddedServer
from feature_platform.embedded.system_user import SystemUser, run_as
from feature_platform_tests.fix_environment import passable_directory

CHECKOUT = Path(feature_platform.__file__).parents[1]

# Such a server starts faster; the data need not survive a power cut.
FAST = {"fsync": "off", "shared_buffers": "16MB"}

HOLD = """
import sys
from pathlib import Path
from feature_platform.embedded.server import EmbeddedServer
from feature_platform.errors import UserError

server = EmbeddedServer(Path(sys.argv[1]), conf={"fsync": "off", "shared_buffers": "16MB"})
try:
    server.start()
except UserError as error:
    print("rejected:", error, flush=True)
    sys.exit(2)
print(server.url(), flush=True)
sys.stdin.read()
"""


class User:
    """An OS user, and the Python interpreter that this user can run."""

    def __init__(self, system_user: SystemUser | None, python: str) -> None:
        self.system_user = system_user
        self.python = python
        site = sysconfig.get_path("purelib")
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), site]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def popen(self, code: str, *arguments: str | Path) -> subprocess.Popen[str]:
        """Run Python code as this user, in a session of its own."""
        return subprocess.Popen(
            [self.python, "-W", "error", "-c", code, *map(str, arguments)],
            cwd="/",
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **run_as(self.system_user),
        )


class Holder:
    """A process that starts an embedded server and holds it until its standard input ends."""

    def __init__(self, user: User, home: Path, code: str = HOLD) -> None:
        self.process = user.popen(code, home)
        self._first_line: str | None = None

    @property
    def first_line(self) -> str:
        """Its first line of output: the URL of its server, or the reason of its error."""
        if self._first_line is None:
            assert self.process.stdout is not None
            self._first_line = self.process.stdout.readline().strip()
        return self._first_line

    def begin_to_exit(self) -> None:
        """End its input, so that it exits in order; do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def exit(self) -> str:
        """End its input, wait until it has exited, and return its stderr."""
        _, errors = self.process.communicate(timeout=60)
        return errors

    def kill(self) -> None:
        """Kill this process alone, as kill -9 does."""
        self.process.kill()
        self.process.communicate(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.exit()


Hold = Callable[[Path], Holder]


@pytest.fixture(params=["the user of the tests", "a normal user"])
def user(request: pytest.FixtureRequest) -> User:
    """Return the OS user of the processes."""
    if request.param == "the user of the tests":
        return User(None, sys.executable)
    if os.geteuid() != 0:
        pytest.skip("the tests themselves run as a normal user")
    return normal_user()


@pytest.fixture
def other_user() -> User:
    """Return a normal OS user; the tests themselves run as root."""
    if os.geteuid() != 0:
        pytest.skip("only root can run processes as another user")
    return normal_user()


@cache
def normal_user() -> User:
    """Return an OS user without rights, and an interpreter that it can run; else skip the test."""
    entry = pwd.getpwnam("nobody")
    system_user = SystemUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    # The tests' own interpreter may lie where only root can reach it.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/local/bin/{version}", f"/usr/bin/{version}"):
        found = User(system_user, python)
        try:
            with found.popen("import feature_platform.embedded.server") as process:
                process.communicate()
        except OSError:
            continue
        if process.returncode == 0:
            return found
    pytest.skip(f"the user {entry.pw_name} can run no {version} that finds the platform")


@pytest.fixture
def home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Yield a home that does not exist yet, in a directory where the test's user may create it."""
    with passable_directory() as parent:
        if "user" in request.fixturenames:
            give(parent, request.getfixturevalue("user"))
        yield parent / "home"


def give(path: Path, user: User) -> None:
    """Make `user` the owner of `path`."""
    if user.system_user is not None:
        os.chown(path, user.system_user.uid, user.system_user.gid)


@pytest.fixture(scope="session")
def new_data() -> Iterator[Path]:
    """Yield the data directory of a new server, as its first start and stop leave it."""
    with passable_directory() as parent:
        with EmbeddedServer(parent / "home", conf=FAST):
            pass
        yield parent / "home" / "postgres"


@pytest.fixture
def existing_data(home: Path, new_data: Path, request: pytest.FixtureRequest) -> None:
    """Copy the data of a new server into the home: initdb takes ten times as long as a copy."""
    home.mkdir(mode=0o711)
    shutil.copytree(new_data, home / "postgres")
    if "user" in request.fixturenames:
        user = request.getfixturevalue("user")
        for path in (home, *home.rglob("*")):
            give(path, user)


@pytest.fixture
def hold(user: User) -> Iterator[Hold]:
    """Yield a function that starts a holder, as the test's user."""
    with ExitStack() as stack:
        yield lambda home: stack.enter_context(Holder(user, home))


@pytest.fixture
def server(home: Path, existing_data: None) -> Iterator[EmbeddedServer]:  # noqa: ARG001
    """Yield a server of this process that has data and is not started."""
    server = EmbeddedServer(home, conf=FAST)
    yield server
    server.release()


@pytest.fixture
def new_server(home: Path) -> Iterator[EmbeddedServer]:
    """Yield a server of this process that has no data yet."""
    server = EmbeddedServer(home, conf=FAST)
    yield server
    server.release()


def is_running(home: Path) -> bool:
    """Return whether any process of the server lives."""
    try:
        file = (home / "postgres.server.lock").open()
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def postmaster_pid(home: Path) -> int:
    """Return the process id of the running server."""
    return int((home / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])


@contextmanager
def suspended(processes: Iterable[psutil.Process]) -> Iterator[list[psutil.Process]]:
    """Suspend processes of a server while the body runs; yield those that had not ended before."""
    alive = []
    try:
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # an autovacuum worker ends at any time
                process.suspend()
                alive.append(process)
        yield alive
    finally:
        for process in alive:
            with suppress(psutil.NoSuchProcess):  # the resumed server may end the others
                process.resume()


def use_until_it_ends(connection: psycopg.Connection) -> None:
    """Send statements until the server ends the connection, and raise its error."""
    while True:
        connection.execute("SELECT 1")


def wait_until_dead(home: Path) -> None:
    """Wait until all processes of the server are gone."""
    with (home / "postgres.server.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def small_file_system(megabytes: int) -> Iterator[Path]:
    """Mount a file system of this size while the body runs; skip the test where that is forbidden.

    Its path is short, so that the server's socket is on it, too.
    """
    mounted = Path(tempfile.mkdtemp(prefix="fp-"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=711", "tmpfs", mounted],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True)
        mounted.rmdir()


def fill(disk: Path, left: int) -> None:
    """Fill a file system with the file `filling`, except for so many bytes."""
    with (disk / "filling").open("ab", buffering=0) as file:
        if left:
            free = shutil.disk_usage(disk).free - left
            os.posix_fallocate(file.fileno(), file.tell(), max(free, 1))
            return
        for size in (1 << 20, 4096):  # by writes, because other processes may write, too
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
