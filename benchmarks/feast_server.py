"""Feast's own Python feature server, with its PostgreSQL online store, over the same values.

Feast has an environment of its own outside of this project, which the first use creates in the
user's cache.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from psycopg.conninfo import conninfo_to_dict

from benchmarks.harness import WrongResultError, free_port

VERSION = "0.67.0"
VIEW = "features_1m"

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feature_platform"
_FILL = Path(__file__).with_name("feast_fill.py")
_PATIENCE = 120.0


class FeastMissingError(Exception):
    """The reason why Feast cannot be used here."""


def install() -> Path:
    """Return the directory of Feast's environment; its creation takes minutes and 1.5 GB.

    Raises FeastMissingError with the reason if the creation fails.
    """
    place = _CACHE / f"feast-{VERSION}"
    if (place / "bin" / "feast").exists():
        return place
    try:
        venv.create(place, with_pip=True)
        subprocess.run(
            [
                place / "bin" / "python",
                *("-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                f"feast[postgres]=={VERSION}",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=1800,
        )
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(place, ignore_errors=True)
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise FeastMissingError(lines[-1] if lines else repr(error)) from None
    return place


@contextmanager
def feast_server(environment: Path, url: str, rows: pa.Table) -> Iterator[str]:
    """Serve rows of one symbol each by Feast from the database of `url`; give the server's URL.

    Its options are the fastest ones: one worker that is never restarted, a pool of connections and
    no access log.
    """
    with tempfile.TemporaryDirectory(prefix="feature_platform-feast-") as name:
        repository = Path(name)
        parts = conninfo_to_dict(url)
        store = {
            "type": "postgres",
            "host": parts.get("host") or "localhost",
            "port": int(str(parts.get("port") or 5432)),
            "database": parts["dbname"],
            "db_schema": "feast",
            "user": parts.get("user") or "postgres",
            "password": parts.get("password") or "",
            "sslmode": "prefer",
            "conn_type": "pool",
            "min_conn": 4,
            "max_conn": 8,
        }
        configuration = {
            "project": "benchmark",
            "provider": "local",
            "registry": str(repository / "registry.db"),
            "online_store": store,
            "entity_key_serialization_version": 3,
        }
        # JSON is YAML.
        (repository / "feature_store.yaml").write_text(json.dumps(configuration), encoding="utf-8")
        pyarrow.parquet.write_table(rows, repository / "rows.parquet")
        quiet = {**os.environ, "FEAST_USAGE": "False"}
        filled = subprocess.run(
            [environment / "bin" / "python", _FILL, repository],
            capture_output=True,
            text=True,
            check=False,
            env=quiet,
        )
        if filled.returncode != 0:
            raise WrongResultError(f"Feast did not take the rows: {filled.stderr[-2000:]}")
        port = free_port()
        command = [str(environment / "bin" / "feast"), "--chdir", str(repository), "serve"]
        options = ["--port", str(port), "--no-access-log", "--max-requests", "0"]
        with (
            (repository / "log").open("w") as log,
            subprocess.Popen(
                [*command, *options], stdout=log, stderr=log, start_new_session=True, env=quiet
            ) as process,
        ):
            try:
                _wait(f"http://127.0.0.1:{port}", process, repository / "log")
                yield f"http://127.0.0.1:{port}"
            finally:
                os.killpg(process.pid, signal.SIGTERM)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise WrongResultError(f"Feast does not serve: {log.read_text(encoding='utf-8')[-2000:]}")


if __name__ == "__main__":
    print(install(), file=sys.stderr)
