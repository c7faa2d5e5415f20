"""Databases of older versions of the schema."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

from feature_platform.embedded.server import bin_dir

# `pg_dump --no-owner --no-privileges` of databases.
#
# schema_1 to schema_3: of each version, with 1,803 bars of three symbols, gaps, a policy that was
# changed, a run of it, and marks not yet refreshed. That of version 3 was set up by files of an
# older hash.
# served_day: a database for simulated bars with the views of served_day.py and without bars, set up
# by the last files of version 3 that kept no versions of rows.
_DUMPS = Path(__file__).parent / "data"


def load_dump(name: str, url: str) -> None:
    """Load a dump into an empty database."""
    text = lzma.decompress((_DUMPS / f"{name}.sql.xz").read_bytes())
    subprocess.run(
        [bin_dir() / "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", url],
        # The dump is of PostgreSQL 18; older servers do not have this setting.
        input=text.replace(b"SET transaction_timeout = 0;", b""),
        stdout=subprocess.DEVNULL,
        check=True,
    )
