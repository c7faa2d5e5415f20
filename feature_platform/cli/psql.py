"""PostgreSQL's own shell on the platform's database."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from feature_platform.database import database_url, with_clock
from feature_platform.embedded.server import bin_dir
from feature_platform.errors import UserError


def run_psql(arguments: Sequence[str]) -> int:
    """Run `psql` on the platform's database, which is up at least until it ends.

    arguments: of psql, without the database's.
    Returns psql's exit status, or 128 + n where signal n ended it.
    Raises UserError when there is no psql or no database.
    """
    parts = conninfo_to_dict(with_clock(database_url()))
    # Everyone can read a command's arguments; its environment only its user.
    password = parts.pop("password", None)
    environment = {**os.environ, **({"PGPASSWORD": str(password)} if password else {})}
    command: list[str | Path] = [_program(), f"--dbname={make_conninfo('', **parts)}", *arguments]
    # Ctrl-C reaches both of us, and is psql's to deal with: it cancels the statement.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        status = subprocess.run(command, env=environment, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status


def _program() -> Path:
    try:
        return bin_dir() / "psql"
    except UserError:
        found = shutil.which("psql")
        if found is None:
            raise UserError("there is no psql: install PostgreSQL's client programs") from None
        return Path(found)
