"""The PostgreSQL server that the platform brings along and runs by itself.

A wheel brings the binaries; this module decides when they run. One server serves every process
that asks for it, on a Unix socket that only its owner can reach; the last process stops it.

No process id is trusted to say who lives. File locks are, because the kernel releases them
however a process ends. In the home directory

- `postgres.users.lock` is held shared by every process that uses the server, for as long as it
  lives, and exclusively by the one that stops it;
- `postgres.start.lock` is held by the one process that is starting the server;
- `postgres.server.lock` is held by the server's own processes, who inherit it: while it is taken,
  the data directory is in use.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import shutil
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

from feature_platform.embedded.cluster import Cluster, bin_dir
from feature_platform.embedded.system_user import give_to_owner
from feature_platform.errors import UserError
from feature_platform.queries import queries

__all__ = ["DATABASE", "EmbeddedServer", "bin_dir", "embedded_server"]

DATABASE = "feature_platform"

_POLL = 0.02  # seconds, at first; later a tenth of the time that was waited already
_LONGEST_POLL = 0.5
_PATIENCE = 10.0  # seconds of recovery before the log says what is waited for
_SILENCE = 60.0  # seconds that a living server may give no answer at all
_ANSWER = 5.0  # seconds that the server may take to answer a ping; one that is there is quick
_STOP = 120.0  # seconds that a server may take to stop before it is left to it

_logger = logging.getLogger(__name__)


class _SilentError(Exception):
    """The server, or the process that starts or stops it, takes too long."""


class EmbeddedServer:
    """Run a PostgreSQL server for as long as any process needs it.

    home: the directory that holds its data (`postgres/`), locks, logs and configuration.
    conf: server settings beside, or instead of, the platform's own; read when it starts.
    binaries: the directory of the PostgreSQL programs to run, by default the wheel's.

    As a context manager it starts and releases; that does not nest within one process.
    """

    def __init__(
        self, home: Path, *, conf: Mapping[str, str] | None = None, binaries: Path | None = None
    ) -> None:
        self.home = home.absolute().resolve()
        self.shared = False
        """Whether another process was using the server when this one began to."""
        self._cluster = Cluster(self.home, conf or {}, binaries)
        self._mutex = threading.RLock()
        self._users: int | None = None  # the descriptor of our share of the users' lock
        self._descriptors: set[int] = set()  # of all lock files, for a forked child to close
        _servers.add(self)

    def start(self, silence: float | None = None) -> None:
        """Make sure that the server runs, and hold on to it until `release` or exit.

        Waits for as long as another process starts or stops it, or it recovers from a crash.
        May be called again at any time, and starts the server again if it has died meanwhile.

        silence: seconds, 2 or more, after which to give up a server that runs but does not answer,
            and another process that is starting or stopping it; by default a minute, and for ever.
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
                # To stop it would mean to wait for it again.
                self._let_go()
                raise UserError(str(error)) from None
            except OSError as error:
                self.release()
                raise UserError(self._explain(error)) from error
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """Let go of the server, and stop it if no other process holds it.

        Does nothing when this process does not hold it.
        """
        with self._mutex:
            if not self._let_go():
                return
            # Where the home has been removed, the server stops by itself within a minute.
            with suppress(FileNotFoundError), self._open("users") as users:
                if _try_lock(users):
                    self._stop()

    def _let_go(self) -> bool:
        """Give up the share of the users' lock; return whether there was one."""
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
        """Return the URL of a database of this server, which answers while it is held."""
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
        """Take a share of the users' lock, which keeps others from stopping the server."""
        if self._users is not None:
            return
        # The server's user must pass through the home; nobody else has any business there.
        self.home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        users = self._take("users")
        try:
            self.shared = not _try_lock(users)
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
        """Let go, in a forked child, of what it inherited: the server is its parent's to stop."""
        self._mutex = threading.RLock()
        self._users = None
        for descriptor in tuple(self._descriptors):
            self._drop(descriptor)
        atexit.unregister(self._release_at_exit)

    def _ensure_answer(self, start_lock: int, silence: float) -> None:
        """Start the server unless it runs, and return once it takes connections."""
        self._cluster.check_socket_dir()
        launched = told = False
        began = heard = time.monotonic()
        recovering: float | None = None
        while (answer := self._cluster.ping(min(silence, _ANSWER))) is not pq.Ping.OK:
            now = time.monotonic()
            with self._open("server") as server_lock:
                if _try_lock(server_lock):  # none of its processes lives
                    if launched:
                        raise UserError(self._why_not_started())
                    self._cluster.launch(start_lock, server_lock)
                    launched = True
                    began = heard = now = time.monotonic()
            if answer is pq.Ping.REJECT:  # recovering from a crash, or stopping
                heard = now
                recovering = recovering or now
            if now - heard >= (_SILENCE if launched else silence):
                raise _SilentError(
                    f"the database in {self.home} runs, but does not answer in"
                    f" {self._cluster.socket_dir}: see its log in {self._cluster.logs}"
                )
            if recovering and now - recovering > _PATIENCE and not told:
                _logger.warning("waiting for the database in %s to recover", self.home)
                told = True
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
        """Stop the server, which nobody uses: we hold its users' lock exclusively."""
        if not self._is_alive():
            return
        began = time.monotonic()
        asked = None
        while self._is_alive():
            if asked is None:
                asked = self._cluster.interrupt()
            if time.monotonic() - began > _STOP:
                _logger.warning("the database in %s is slow to stop, and left to it", self.home)
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
            # Never unlocked, only closed: who inherited the descriptor keeps the lock.
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
        if shutil.disk_usage(self.home).free < 1 << 20:
            why = "the disk is full"
        else:
            why = self._cluster.last_words() or "it said nothing"
        return f"the database in {self.home} did not start: {why} (log: {self._cluster.logs})"

    def _explain(self, error: OSError) -> str:
        if error.errno == errno.ENOSPC:
            return f"the database in {self.home} cannot be used: the disk is full"
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
    """Lock exclusively without waiting, and tell whether that was possible."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
