"""The logins of the services: one role each, with its password from the environment."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql
from pydantic import SecretStr

from feature_platform.errors import UserError
from feature_platform.queries import queries, sql_dir
from feature_platform.settings import PREFIX, Settings, get_settings

ROLES = ("owner", "recorder", "refresher", "orchestrator", "reader")


def role_name(role: str) -> str:
    """Return the name that one of ROLES has in PostgreSQL."""
    return f"feature_platform_{role}"


def missing_roles(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the names of the roles that the server does not have."""
    names = [role_name(role) for role in ROLES]
    return [name for (name,) in connection.execute(queries["roles_missing"], {"names": names})]


def set_logins(
    connection: psycopg.Connection[Any], settings: Settings | None = None
) -> tuple[str, ...]:
    """Create the roles, let those with a password in the settings log in, and return their names.

    Roles without a password there stay unchanged. The statement, which the server may log, has only
    the SCRAM verifier of a password. The orchestrator's role gets the database of Dagster's events,
    unless there is one.

    connection: in autocommit mode, of a superuser or a user with CREATEROLE (and CREATEDB).
    Raises UserError when no password is set, or the user may not do this.
    """
    given = _passwords(settings or get_settings())
    if not given:
        variables = ", ".join(f"{PREFIX}{role.upper()}_PASSWORD" for role in ROLES)
        raise UserError(f"no login has a password: set some of {variables}")
    try:
        connection.execute((sql_dir() / "005_roles.sql").read_text(encoding="utf-8"))
        with connection.transaction():
            for role, password in given.items():
                _set_password(connection, role_name(role), password)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject) as error:
        raise UserError(
            f"the logins need a superuser or a user with CREATEROLE: {error.diag.message_primary}"
        ) from None
    if "orchestrator" in given:
        _make_dagsters_database(connection, role_name("orchestrator"))
    return tuple(role_name(role) for role in given)


def _make_dagsters_database(connection: psycopg.Connection[Any], owner: str) -> None:
    from feature_platform.orchestration.instance import ensure_database

    if connection.info.parameter_status("is_superuser") != "on":
        # The owner of a new database must be a role that the user is a member of.
        with suppress(psycopg.errors.InsufficientPrivilege):
            connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(owner)))
    ensure_database(connection, owner)


def _passwords(settings: Settings) -> dict[str, SecretStr]:
    found = ((role, getattr(settings, f"{role}_password")) for role in ROLES)
    return {role: password for role, password in found if password is not None}


def _set_password(connection: psycopg.Connection[Any], role: str, password: SecretStr) -> None:
    verifier = connection.pgconn.encrypt_password(
        password.get_secret_value().encode(), role.encode(), b"scram-sha-256"
    )
    statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}")
    connection.execute(statement.format(sql.Identifier(role), sql.Literal(verifier.decode())))
