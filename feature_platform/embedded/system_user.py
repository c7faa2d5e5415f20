"""The system user that the embedded server runs as when the platform itself runs as root.

PostgreSQL refuses to run as root. A normal user needs none of this: its account is None.
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


class Account(NamedTuple):
    """Name a system user."""

    name: str
    uid: int
    gid: int


class RunAs(TypedDict, total=False):
    """Hold the arguments of subprocess that change who a command runs as."""

    user: int
    group: int
    extra_groups: list[int]


def server_account(home: Path) -> Account | None:
    """Return who the server of `home` must run as, or None for the user of this process.

    For root that is the owner of `home` (so that a command under sudo and the owner's own
    commands share one server), or, where root owns it, a system user made for the purpose.
    Raises UserError when that user cannot be made.
    """
    if os.geteuid() != 0:
        return None
    owner = home.stat().st_uid
    try:
        entry = pwd.getpwuid(owner) if owner else _system_user()
    except KeyError:  # a mounted directory: its owner has no name here, and initdb needs one
        entry = _system_user()
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


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
            f"as root the embedded database needs the system user {SYSTEM_USER}, which could not"
            f" be made ({why}): make it, run as another user, or set FEATURE_PLATFORM_DATABASE_URL"
        ) from None


def run_as(account: Account | None) -> RunAs:
    """Return the arguments of subprocess that run a command as `account`."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def let_pass(account: Account | None, path: Path) -> None:
    """Let `account` pass through the parents of `path` (an absolute path without links).

    It gets the right to pass (o+x) where it has none, never to read, and a warning says so.
    """
    if account is None:
        return
    for parent in reversed(path.parents):
        status = parent.stat()
        if status.st_uid == account.uid:
            needed = stat.S_IXUSR
        elif status.st_gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            parent.chmod(stat.S_IMODE(status.st_mode) | needed)
            _logger.warning(
                "%s can now be passed through, not read, by the user %s, who runs the database",
                parent,
                account.name,
            )


def let_run(account: Account | None, program: Path, trees: list[Path]) -> None:
    """Make sure that `account` can run `program`, whose files are in `trees`.

    Where it cannot, its files become readable by all, as software usually is.
    Raises UserError when the program does not run even so.
    """
    if account is None:
        return
    let_pass(account, program)
    if _refusal(account, program) is None:
        return
    for tree in trees:
        let_pass(account, tree)
        for path in [tree, *tree.rglob("*")]:
            mode = stat.S_IMODE(path.lstat().st_mode)
            if not path.is_symlink():
                path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))
        _logger.warning("%s can now be read by all, so that %s can run it", tree, account.name)
    refusal = _refusal(account, program)
    if refusal is not None:
        raise UserError(
            f"the user {account.name} cannot run {program} ({refusal}): install the platform"
            " where all users can read it, or set FEATURE_PLATFORM_DATABASE_URL"
        )


def _refusal(account: Account, program: Path) -> str | None:
    """Return why `account` cannot run `program`, or None when it can."""
    try:
        subprocess.run(
            [program, "--version"],
            cwd="/",
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            **run_as(account),
        )
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    except OSError as error:
        return error.strerror or str(error)
    return None


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Give a file that root made to the owner of the directory, who has to use it too."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def hand_over(account: Account | None, directory: Path) -> None:
    """Give `directory` and all in it to `account`, unless it owns it already."""
    if account is None or directory.lstat().st_uid == account.uid:
        return
    for folder, _, files in os.walk(directory, topdown=False):
        for path in [*(Path(folder, name) for name in files), Path(folder)]:
            os.lchown(path, account.uid, account.gid)
