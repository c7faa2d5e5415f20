"""Guards against a set-up that needs a superuser, which managed servers do not provide."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from feature_platform.embedded.server import EmbeddedServer
from feature_platform_tests.fix_environment import passable_directory
from feature_platform_tests.fix_processes import only_line, run, run_on, value

OWNER = "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'feature_platform'"
MAY_READ = "SELECT has_table_privilege('feature_platform_reader', 'features_1m', 'SELECT')"


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """Yield a server with two users without superuser rights, each with its own database."""
    with passable_directory() as home, EmbeddedServer(home, conf={"fsync": "off"}) as server:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE ROLE plain LOGIN")
            connection.execute("CREATE ROLE maker LOGIN CREATEROLE CREATEDB")
            connection.execute("CREATE DATABASE plain OWNER plain")
            connection.execute("CREATE DATABASE maker OWNER maker")
        yield server


def test_the_set_up_needs_no_superuser(server: EmbeddedServer) -> None:
    plain, maker = (make_conninfo(server.url(user), user=user) for user in ("plain", "maker"))
    # A user who may not create roles owns the objects; a message explains how to get roles.
    done = run_on(plain, "db", "apply")
    assert (done.returncode, done.stdout[:7]) == (0, "set up:")
    line = only_line(done.stderr)
    assert line.startswith("feature-platform: plain may not create roles, so there is no feature_")
    assert line.endswith("sql/005_roles.sql, then apply again")

    # For a user who may create roles, there are roles, their logins, and Dagster's database.
    done = run_on(maker, "db", "apply")
    assert (done.returncode, done.stderr) == (0, "")
    logins = {
        "FEATURE_PLATFORM_ORCHESTRATOR_PASSWORD": "a",
        "FEATURE_PLATFORM_READER_PASSWORD": "b",
    }
    done = run("db", "logins", FEATURE_PLATFORM_DATABASE_URL=maker, **logins)
    assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(maker) as connection:
        assert value(connection, OWNER) == "feature_platform_owner"
        assert value(connection, MAY_READ)
        sought = "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'dagster'"
        assert value(connection, sought) == "feature_platform_orchestrator"

    # The roles exist now; the next set-up of the first database grants them their rights.
    done = run_on(plain, "db", "apply")
    assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(plain) as connection:
        assert value(connection, OWNER) == "plain"
        assert value(connection, MAY_READ)
