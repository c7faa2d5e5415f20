"""The OS user of the embedded server when the platform itself runs as root.

PostgreSQL does not run as root. For any other user the server runs as that user, None here.
"""

from __future__ import annotations

import logging
import os
import pwd
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple, TypedDict

from feature_platform.errors import UserError

SYSTEM_USER = "feature_platform"

_logger = logging.getLogger(__name__)


class SystemUser(NamedTuple):
    """An OS user, with its name and ids."""

    name: str
    uid: int
    gid: int


class RunAs(TypedDict, total=False):
    """The arguments of subprocess that change the OS user of a command."""

    user: int
    group: int
    extra_groups: list[int]


def server_user(home: Path) -> SystemUser | None:
    """Return the OS user that the server of `home` must run as, None for that of this process.

    For root it is the owner of `home`, so that a command under sudo and the owner's own commands
    share one server, or, if root owns it, the system user `feature_platform`, which is created.
    Raises UserError if that user cannot be created.
    """
    if os.geteuid() != 0:
        return None
    owner = home.stat().st_uid
    try:
        entry = pwd.getpwuid(owner) if owner else _system_user()
    except KeyError:  # the owner of a mounted directory may have no name, and initdb needs one
        entry = _system_user()
    return SystemUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    options = ["--system", "--no-create-home", "--home-dir=/", "--shell=/usr/sbin/nologin"]
    try:
        done = subprocess.run(
            ["useradd", *options, SYSTEM_USER],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        why = done.stderr.strip()
    except OSError as error:
        why = f"useradd: {error.strerror}"
    try:
        return pwd.getpwnam(SYSTEM_USER)  # another process may have been quicker
    except KeyError:
        raise UserError(
            f"as root the embedded server needs the system user {SYSTEM_USER}, which could not"
            f" be made ({why}): make it, run as another user, or set FEATURE_PLATFORM_DATABASE_URL"
        ) from None


def run_as(user: SystemUser | None) -> RunAs:
    """Return the arguments of subprocess that run a command as `user`."""
    if user is None:
        return {}
    return {"user": user.uid, "group": user.gid, "extra_groups": []}


def let_pass(user: SystemUser | None, path: Path) -> None:
    """Let `user` pass through the parents of `path` (an absolute path without links).

    Where it has no right to pass it gets that right (o+x), never the right to read; each change
    is logged as a warning.
    """
    if user is None:
        return
    for parent in reversed(path.parents):
        status = parent.stat()
        if status.st_uid == user.uid:
            needed = stat.S_IXUSR
        elif status.st_gid == user.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            parent.chmod(stat.S_IMODE(status.st_mode) | needed)
            _logger.warning(
                "%s can now be passed through, not read, by the user %s, who runs the database",
                parent,
                user.name,
            )


def let_run(user: SystemUser | None, program: Path, trees: list[Path]) -> None:
    """Make sure that `user` can run `program`, whose files are in `trees`.

    If it cannot, its files become readable by all, as software usually is.
    Raises UserError if the program does not run even then.
    """
    if user is None:
        return
    let_pass(user, program)
    if _why_not(user, program) is None:
        return
    for tree in trees:
        let_pass(user, tree)
        for path in [tree, *tree.rglob("*")]:
            mode = stat.S_IMODE(path.lstat().st_mode)
            if not path.is_symlink():
                path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))
        _logger.warning("%s can now be read by all, so that %s can run it", tree, user.name)
    reason = _why_not(user, program)
    if reason is not None:
        raise UserError(
            f"the user {user.name} cannot run {program} ({reason}): install the platform"
            " where all users can read it, or set FEATURE_PLATFORM_DATABASE_URL"
        )


def _why_not(user: SystemUser, program: Path) -> str | None:
    """Return why `user` cannot run `program`, None if it can."""
    try:
        subprocess.run(
            [program, "--version"],
            cwd="/",
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            **run_as(user),
        )
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    except OSError as error:
        return error.strerror or str(error)
    return None


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Give a file that root made to the owner of the directory, who uses it, too.

    descriptor: of the open file. Raises OSError if the file system does not allow it.
    """
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def hand_over(user: SystemUser | None, directory: Path) -> None:
    """Give `directory` and all in it to `user`, unless it owns it already."""
    if user is None or directory.lstat().st_uid == user.uid:
        return
    for folder, _, files in os.walk(directory, topdown=False):
        for path in [*(Path(folder, name) for name in files), Path(folder)]:
            os.lchown(path, user.uid, user.gid)
