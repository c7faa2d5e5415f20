"""The embedded PostgreSQL server: when it starts, and when it stops.

The binaries come from a Python wheel. One server serves all processes that use it, on a Unix socket
that only its owner can reach. The last process stops it, unless `db start` keeps it running.

File locks show which processes are running, because the kernel releases them in any case when a
process ends; process ids do not show it. In the home directory

- `postgres.users.lock` is held shared by every process that uses the server, for as long as it
  lives, and exclusively by the one that stops it;
- `postgres.start.lock` is held by the one process that is starting the server;
- `postgres.server.lock` is held by the server's own processes, who inherit it: while it is locked,
  the data directory is in use;
- `postgres.keep` exists while the server has to run without any process that uses it.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import pq, sql

from feature_platform.disk import DISK_FULL, is_full
from feature_platform.embedded.cluster import Cluster, bin_dir
from feature_platform.embedded.system_user import give_to_owner
from feature_platform.errors import UserError
from feature_platform.queries import queries

__all__ = ["DATABASE", "EmbeddedServer", "bin_dir", "embedded_server"]

DATABASE = "feature_platform"

_POLL = 0.02  # seconds, at first; later a tenth of the time that was waited already
_LONGEST_POLL = 0.5
_PATIENCE = 10.0  # seconds of recovery before a warning
_SILENCE = 60.0  # seconds after which a server without any answer has failed
_ANSWER = 5.0  # seconds for the answer to a ping; a server that runs answers at once
_STOP = 120.0  # the longest wait for a server to stop, in seconds

_logger = logging.getLogger(__name__)


class _SilentError(Exception):
    """The server does not answer in time, or another process starts or stops it for too long."""


class EmbeddedServer:
    """A PostgreSQL server that runs as long as any process uses it.

    home: the directory that holds its data (`postgres/`), locks, logs and configuration.
    conf: server settings beside, or instead of, the platform's own; read when it starts.
    binaries: the directory of the PostgreSQL programs to run, by default the wheel's.

    As a context manager it starts and releases; that does not nest within one process.
    """

    def __init__(
        self, home: Path, *, conf: Mapping[str, str] | None = None, binaries: Path | None = None
    ) -> None:
        self.home = home.absolute().resolve()
        self._cluster = Cluster(self.home, conf or {}, binaries)
        self._mutex = threading.RLock()
        self._keep_file = self.home / "postgres.keep"
        self._users: int | None = None  # the descriptor of this process's share of the users' lock
        self._descriptors: set[int] = set()  # of all lock files, for a forked child to close
        _servers.add(self)

    def start(self, silence: float | None = None) -> None:
        """Make sure that the server runs, and use it until `release` or exit.

        Waits as long as another process starts or stops it, or it recovers from a crash.
        May be called again at any time, and starts the server again if it has died meanwhile.

        silence: seconds, 2 or more, after which to give up a server that runs but does not answer,
            and another process that is starting or stopping it; by default a minute for the
            server, and no limit for the other process.
        Raises UserError with the reason why it cannot run.
        """
        with self._mutex:
            try:
                self._hold(silence)
                with self._open("start") as lock:
                    self._lock(lock, fcntl.LOCK_EX, silence)
                    self._ensure_answer(lock, _SILENCE if silence is None else silence)
                    self._ensure_database()
            except _SilentError as error:
                # Stopping it would take as long again.
                self._let_go()
                raise UserError(str(error)) from None
            except OSError as error:
                self.release()
                raise UserError(self._explain(error)) from error
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """Stop using the server; stop it if no other process uses it and `keep` does not hold it.

        Does nothing if this process does not use it.
        """
        with self._mutex:
            if not self._let_go():
                return
            # If the home has been removed, the server stops within a minute.
            with suppress(FileNotFoundError), self._open("users") as users:
                if _try_lock(users) and not self.is_kept:
                    self._stop()

    @property
    def is_running(self) -> bool:
        """Whether the server runs now."""
        return self.home.is_dir() and self._is_alive()

    @property
    def is_kept(self) -> bool:
        """Whether the server stays up without any process that uses it, until `stop`."""
        return self._keep_file.exists()

    def keep(self) -> None:
        """Start the server, and keep it up after the end of all processes, until `stop`.

        Raises UserError as `start` does.
        """
        with self._mutex:
            self.start()
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._keep_file, flags, 0o600)
            try:
                give_to_owner(descriptor, self.home)
            finally:
                os.close(descriptor)

    def stop(self) -> bool:
        """Undo `keep`, and stop the server if no other process uses it.

        Returns whether it is stopped; if not, the last process that uses it stops it.
        """
        with self._mutex:
            if not self.home.is_dir():
                return True
            # With a share of the lock, no other process reads the file while it is removed.
            self._hold(None)
            self._keep_file.unlink(missing_ok=True)
            self.release()
            return not self._is_alive()

    def _let_go(self) -> bool:
        """Release this process's share of the users' lock; return whether it had one."""
        if self._users is None:
            return False
        self._drop(self._users)
        self._users = None
        atexit.unregister(self._release_at_exit)
        return True

    def _lock(self, descriptor: int, kind: int, silence: float | None) -> None:
        """Lock a file; raise _SilentError where that takes longer than `silence` seconds."""
        if silence is None:
            fcntl.flock(descriptor, kind)
            return
        deadline = time.monotonic() + silence
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _SilentError(
                        f"another process is starting or stopping the database in {self.home}"
                        f" for more than {silence:g} s: see its log in {self._cluster.logs}"
                    ) from None
            time.sleep(_POLL)

    def url(self, dbname: str = DATABASE) -> str:
        """Return the URL of a database of this server, which answers while it is in use."""
        return self._cluster.url(dbname)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _hold(self, silence: float | None) -> None:
        """Lock the users' lock shared, so that no other process stops the server."""
        if self._users is not None:
            return
        # The server's OS user must pass through the home; it is closed to all others.
        self.home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        users = self._take("users")
        try:
            self._lock(users, fcntl.LOCK_SH, silence)  # waits for a process that is stopping it
        except BaseException:
            self._drop(users)
            raise
        self._users = users
        atexit.register(self._release_at_exit)

    def _release_at_exit(self) -> None:
        with suppress(KeyboardInterrupt):
            self.release()

    def _forget(self) -> None:
        """Close the inherited locks in a forked child: its parent stops the server."""
        self._mutex = threading.RLock()
        self._users = None
        for descriptor in tuple(self._descriptors):
            self._drop(descriptor)
        atexit.unregister(self._release_at_exit)

    def _ensure_answer(self, start_lock: int, silence: float) -> None:
        """Start the server unless it runs, and return once it takes connections."""
        self._cluster.check_socket_dir()
        launched = warned = False
        began = answered = time.monotonic()
        recovering: float | None = None
        while (answer := self._cluster.ping(min(silence, _ANSWER))) is not pq.Ping.OK:
            now = time.monotonic()
            with self._open("server") as server_lock:
                if _try_lock(server_lock):  # no process of the server lives
                    if launched:
                        raise UserError(self._why_not_started())
                    self._cluster.launch(start_lock, server_lock)
                    launched = True
                    began = answered = now = time.monotonic()
            if answer is pq.Ping.REJECT:  # recovering from a crash, or stopping
                answered = now
                recovering = recovering or now
            if now - answered >= (_SILENCE if launched else silence):
                raise _SilentError(
                    f"the database in {self.home} runs, but does not answer in"
                    f" {self._cluster.socket_dir}: see its log in {self._cluster.logs}"
                )
            if recovering and now - recovering > _PATIENCE and not warned:
                _logger.warning("waiting for the database in %s to recover", self.home)
                warned = True
            time.sleep(min(max(_POLL, (now - began) / 10), _LONGEST_POLL))

    def _ensure_database(self) -> None:
        try:
            with psycopg.connect(
                self.url("postgres"), autocommit=True, connect_timeout=10
            ) as connection:
                if connection.execute(queries["database_exists"], {"name": DATABASE}).fetchone():
                    return
                name = sql.Identifier(DATABASE)
                connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        except psycopg.OperationalError as error:
            line = str(error).splitlines()[0]
            raise UserError(f"the database in {self.home} cannot be used: {line}") from error

    def _stop(self) -> None:
        """Stop the server; the caller holds its users' lock exclusively."""
        if not self._is_alive():
            return
        began = time.monotonic()
        interrupted = None
        while self._is_alive():
            if interrupted is None:
                interrupted = self._cluster.interrupt()
            if time.monotonic() - began > _STOP:
                _logger.warning(
                    "the database in %s did not stop within %.0f s; it continues to stop",
                    self.home,
                    _STOP,
                )
                return
            time.sleep(_POLL)
        self._cluster.tidy()

    def _is_alive(self) -> bool:
        with self._open("server") as lock:
            return not _try_lock(lock)

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        descriptor = self._take(name)
        try:
            yield descriptor
        finally:
            # Closed, never unlocked: a process that inherited the descriptor keeps the lock.
            self._drop(descriptor)

    def _take(self, name: str) -> int:
        path = self.home / f"postgres.{name}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        self._descriptors.add(descriptor)
        give_to_owner(descriptor, self.home)
        return descriptor

    def _drop(self, descriptor: int) -> None:
        self._descriptors.discard(descriptor)
        os.close(descriptor)

    def _why_not_started(self) -> str:
        reason = self._cluster.last_error() or "its log is empty"
        why = DISK_FULL if is_full(self.home) else reason
        return f"the database in {self.home} did not start: {why} (log: {self._cluster.logs})"

    def _explain(self, error: OSError) -> str:
        if error.errno == errno.ENOSPC:
            return f"the database in {self.home} cannot be used: {DISK_FULL}"
        where = error.filename or self.home
        return (
            f"the database in {self.home} cannot be used: {where}: {error.strerror}: set"
            " FEATURE_PLATFORM_HOME to a directory of your own, or FEATURE_PLATFORM_DATABASE_URL"
        )


_servers: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _forget_all() -> None:
    for server in _servers:
        server._forget()


os.register_at_fork(after_in_child=_forget_all)


def embedded_server(home: Path) -> EmbeddedServer:
    """Return this process's server of `home`, the same one each time."""
    return _embedded_server(home.absolute().resolve())


@cache
def _embedded_server(home: Path) -> EmbeddedServer:
    return EmbeddedServer(home)


def _try_lock(descriptor: int) -> bool:
    """Lock exclusively without waiting; return whether that was possible."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
