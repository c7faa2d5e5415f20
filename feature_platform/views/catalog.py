"""The feature views of a database: plan, apply, list, drop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from feature_platform.errors import UserError, one_line
from feature_platform.near_names import near_names
from feature_platform.queries import queries
from feature_platform.refresh import refresh
from feature_platform.views import compiler, plain
from feature_platform.views.aggregates import parse_aggregate
from feature_platform.views.expressions import MINUTE, Lag, Window, walk
from feature_platform.views.view import FeatureView, look_back, warm_up

# The time in which a change of the list of views tries to get its lock, 0.2 s at a time, so that
# refreshes wait no longer.
_GIVE_UP_SECONDS = 60.0

# The symbols on which `plan` measures a view.
_SAMPLE = 10

_YEAR = timedelta(days=365)
# Bytes of a row beside its features, and of its two index entries.
_ROW_BYTES, _INDEX_BYTES = 52, 72


@dataclass(frozen=True)
class ViewStatus:
    """A version of a feature view, as the database knows it.

    buckets: between the first and the last bar of each symbol; unbuilt: of them, those whose
        values are not computed yet.
    dirty: buckets that wait for a refresh, for `dirty_age`.
    lag: the age of the newest row, from the end of its bucket.
    """

    name: str
    version: int
    every: timedelta
    description: str
    columns: list[str]
    sources: list[str]
    look_back: timedelta
    state: str
    error: str | None
    served: bool
    applied_at: datetime
    built_at: datetime | None
    symbols: int
    buckets: int
    unbuilt: int
    dirty: int
    dirty_age: timedelta | None
    lag: timedelta | None

    @property
    def built(self) -> float:
        """Return the built part of the history, 0 to 1."""
        return 1 - self.unbuilt / self.buckets if self.buckets else 1.0


@dataclass
class ViewPlan:
    """The change that an apply would make to one view, and its cost.

    action: "new", "changed", "unchanged" or "restarted" (after an error).
    look_backs: of each column, on bars without gaps.
    bytes_a_year: of one symbol.
    milliseconds: to refresh a new bucket of all symbols of the database, measured on a sample;
        None where there are no bars, or the user is not the owner.
    """

    view: FeatureView
    action: str
    version: int
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    look_backs: dict[str, timedelta] = field(default_factory=dict)
    bytes_a_year: int = 0
    symbols: int = 0
    milliseconds: float | None = None


@dataclass(frozen=True)
class Version:
    """A version of a feature view, as it was applied.

    sources: the expression of each column.
    """

    id: int
    name: str
    version: int
    every: timedelta
    origin: datetime
    description: str
    columns: list[str]
    sources: list[str]
    look_back: timedelta
    served: bool
    state: str


def list_views(connection: psycopg.Connection[Any], name: str | None = None) -> list[ViewStatus]:
    """Return every version of every view, or of one, in the order of their names."""
    with connection.cursor(row_factory=class_row(ViewStatus)) as cursor:
        return cursor.execute(queries["views_list"], {"name": name}).fetchall()


def all_versions(connection: psycopg.Connection[Any]) -> list[Version]:
    """Return every version of every view, in the order of their names; `list_views` knows more."""
    with connection.cursor(row_factory=class_row(Version)) as cursor:
        return cursor.execute(queries["views_versions"]).fetchall()


def versions_of(connection: psycopg.Connection[Any], name: str) -> list[ViewStatus]:
    """Return the versions of one view; raises UserError where there is none."""
    versions = list_views(connection, name)
    if not versions:
        raise _unknown(connection, name)
    return versions


def compiled_text(connection: psycopg.Connection[Any], name: str) -> str:
    """Return the SQL that the newest version of a view was compiled to."""
    row = connection.execute(queries["views_compiled"], {"name": name}).fetchone()
    return "" if row is None else str(row[0])


def _unknown(connection: psycopg.Connection[Any], name: str) -> UserError:
    known = sorted({one.name for one in all_versions(connection)})
    return UserError(
        f"there is no feature view {name!r}{near_names(name, known)}:"
        " `feature-platform views list` lists all"
    )


def plan(connection: psycopg.Connection[Any], views: Sequence[FeatureView]) -> list[ViewPlan]:
    """Return the change that `apply` would make, and the cost of each view; change nothing."""
    versions = all_versions(connection)
    return [_measured(connection, _plan_of(view, versions)) for view in views]


def apply(connection: psycopg.Connection[Any], views: Sequence[FeatureView]) -> list[ViewPlan]:
    """Make these views exist as they are declared, in one transaction; return the changes.

    A new version of a view is built in the background, and takes the place of the served one when
    it is complete. Views that are not given stay as they are.
    connection: of the schema's owner, or of a user that may act for it.
    Raises UserError, and changes nothing, where the user may not, or a view cannot be made.
    """
    with _owner(connection):
        versions = all_versions(connection)
        plans = [_plan_of(view, versions) for view in views]
        for one in plans:
            _check(connection, one.view)
        for one in plans:
            _apply_one(connection, one, versions)
    return plans


def drop(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop a view, its rows and all that is stored about it.

    Raises UserError where there is no such view, the user may not, or other objects depend on it.
    """
    with _owner(connection):
        try:
            row = connection.execute(queries["views_drop"], {"name": name}).fetchone()
        except psycopg.errors.DependentObjectsStillExist as error:
            raise UserError(f"{name} is not dropped: {error.diag.message_detail}") from None
        if row is None or not row[0]:
            raise _unknown(connection, name)


@contextmanager
def _owner(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Open a transaction as the schema's owner, which keeps refreshes from the list of views.

    It gives up the lock between attempts.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(psycopg.errors.LockNotAvailable),
        wait=wait_random(0.05, 0.3),
        stop=stop_after_delay(_GIVE_UP_SECONDS),
        reraise=True,
    )
    with connection.transaction():
        act_as_owner(connection)
        connection.execute("SET LOCAL lock_timeout = '200ms'")
        try:
            retrying(_lock, connection)
        except psycopg.errors.LockNotAvailable:
            raise UserError(
                f"the list of views was in use for {_GIVE_UP_SECONDS:.0f} s, by refreshes or by"
                " another change: try again"
            ) from None
        connection.execute("SET LOCAL lock_timeout = '2s'")
        try:
            yield
        except psycopg.errors.LockNotAvailable as error:
            raise UserError(
                f"the view is in use: {one_line(error)}; try again when its readers have ended"
            ) from None


def _lock(connection: psycopg.Connection[Any]) -> None:
    with connection.transaction():
        connection.execute(queries["views_lock"])


def act_as_owner(connection: psycopg.Connection[Any]) -> None:
    """Run the rest of the transaction as the schema's owner.

    Raises UserError where this user may not.
    """
    row = connection.execute(queries["views_owner"]).fetchone()
    assert row is not None, "the schema exists"
    owner, may_act = row
    if not may_act:
        raise UserError(
            f"only the schema's owner, {owner}, may change feature views:"
            f" connect as that user, not as {connection.info.user}"
        )
    connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))
    connection.execute("SET LOCAL client_min_messages = warning")


def _plan_of(view: FeatureView, versions: Sequence[Version]) -> ViewPlan:
    newest = _newest(_own(view, versions))
    sources = {name: str(expression) for name, expression in view.columns.items()}
    made = ViewPlan(
        view,
        "new",
        1 if newest is None else newest.version,
        look_backs={
            name: look_back(expression, view.width) for name, expression in view.columns.items()
        },
        bytes_a_year=_bytes_a_year(view),
    )
    if newest is None:
        made.added = list(sources)
        return made
    old = dict(zip(newest.columns, newest.sources, strict=True))
    made.added = [name for name in sources if name not in old]
    made.removed = [name for name in old if name not in sources]
    made.changed = [name for name in sources if name in old and old[name] != sources[name]]
    same_grid = (newest.every, _shift(newest)) == (view.width, view.shift)
    if not same_grid:
        made.changed = [name for name in sources if name in old]
    if same_grid and list(old.items()) == list(sources.items()):
        made.action = "restarted" if newest.state == "failed" else "unchanged"
    else:
        made.action, made.version = "changed", newest.version + 1
    return made


def _own(view: FeatureView, versions: Sequence[Version]) -> list[Version]:
    return [one for one in versions if one.name == view.name]


def _newest(versions: Sequence[Version]) -> Version | None:
    return max(versions, key=lambda one: one.version, default=None)


def _shift(version: Version) -> timedelta:
    return timedelta(seconds=version.origin.timestamp())


def _bytes_a_year(view: FeatureView) -> int:
    buckets = _YEAR / view.width
    inner = len(compiler.Plan(view).inner)
    size: float = _ROW_BYTES + 8 * len(view.columns) + _INDEX_BYTES
    if inner:
        size += _ROW_BYTES + 8 * inner + _INDEX_BYTES / 2
    return int(buckets * size)


def _apply_one(
    connection: psycopg.Connection[Any], one: ViewPlan, versions: Sequence[Version]
) -> None:
    view = one.view
    own = _own(view, versions)
    newest = _newest(own)
    if one.action == "new":
        taken = connection.execute(queries["views_name_taken"], {"name": view.name}).fetchone()
        if taken is None or taken[0]:
            raise UserError(
                f"public.{view.name} exists and is not a feature view: give the view another name"
            )
    if newest is not None and newest.description != view.description:
        described = {"id": newest.id, "description": view.description}
        connection.execute(queries["views_describe"], described)
    if one.action == "unchanged":
        return
    if one.action == "restarted":
        assert newest is not None
        connection.execute(queries["views_restart"], {"id": newest.id})
        connection.execute(queries["views_build"], {"id": newest.id})
        return
    for version in own:
        if not version.served:
            connection.execute(queries["views_drop_version"], {"id": version.id})
    number = _create(connection, view, one.version)
    connection.execute(queries["views_build"], {"id": number})
    if not own:
        connection.execute(queries["views_serve"], {"id": number})


def _create(connection: psycopg.Connection[Any], view: FeatureView, version: int) -> int:
    """Create the tables and functions of a version, and return its number."""
    nodes = [node for expression in view.columns.values() for node in walk(expression)]
    parameters = {
        "name": view.name,
        "version": version,
        "every": view.width // MINUTE,
        "shift": view.shift // MINUTE,
        "description": view.description,
        "columns": list(view.columns),
        "sources": [str(expression) for expression in view.columns.values()],
        "look_back": max(look_back(one, view.width) for one in view.columns.values()) // MINUTE,
        "warm_up": max(warm_up(one, view.width) for one in nodes) // MINUTE,
        "has_inner": compiler.has_inner(view),
        "has_rows": any(isinstance(node, Lag) for node in nodes),
    }
    row = connection.execute(queries["views_add"], parameters).fetchone()
    assert row is not None, "the statement returns the number"
    number = int(row[0])
    text = (compiler.compiled(view, number) + plain.compiled(view, number)).as_string(connection)
    connection.execute(text.encode())
    connection.execute(queries["views_set_compiled"], {"id": number, "compiled": text})
    connection.execute(queries["views_finish_tables"], {"id": number})
    return number


def _check(connection: psycopg.Connection[Any], view: FeatureView) -> None:
    """Raise UserError where an aggregate of a view does not exist or must not be used."""
    for column, expression in view.columns.items():
        for node in walk(expression):
            if not isinstance(node, Window) or node.aggregate is None:
                continue
            schema, name, fraction = parse_aggregate(node.aggregate, f"{view.name}.{column}")
            asked = {"schema": schema, "name": name, "ordered": fraction is not None}
            row = connection.execute(queries["views_aggregate"], asked).fetchone()
            if row is not None and row[0] is not None:
                raise UserError(f"{view.name}.{column}: aggregate {schema}.{name} {row[0]}: {node}")


class _Measured(Exception):
    """The end of a measurement, which rolls its transaction back."""


def _measured(connection: psycopg.Connection[Any], one: ViewPlan) -> ViewPlan:
    """Add the time of a new bucket, measured with a sample of symbols in a transaction that is
    rolled back.
    """
    try:
        with connection.transaction():
            act_as_owner(connection)
            _check(connection, one.view)
            _measure(connection, one)
            raise _Measured
    except _Measured:
        pass
    except UserError as error:
        if "only the schema's owner" not in str(error):
            raise
    return one


def _measure(connection: psycopg.Connection[Any], one: ViewPlan) -> None:
    row = connection.execute(queries["views_bar_symbols"], {"most": _SAMPLE}).fetchone()
    assert row is not None, "the statement always gives one row"
    one.symbols, sample = row
    if not sample:
        return
    number = _create(connection, one.view, -1)
    parameters = {"id": number, "symbols": sample}
    connection.execute(queries["views_sample_prepare"], parameters)
    connection.execute(queries["views_sample_refresh"], parameters)
    times = []
    for _ in range(3):  # the first one plans the statements
        connection.execute(queries["views_sample_newest"], {"id": number})
        began = time.perf_counter()
        connection.execute(queries["views_sample_refresh"], parameters)
        times.append(time.perf_counter() - began)
    one.milliseconds = min(times) * 1000 / len(sample) * one.symbols


def refresh_views(
    connection: psycopg.Connection[Any],
    start: datetime | None = None,
    end: datetime | None = None,
    *,
    name: str | None = None,
) -> int:
    """Bring the rows of all views, or of one, up to date for start <= bucket < end.

    connection: in autocommit mode, because each slice is its own transaction. A refresh of
        features_1m has to go before, since it sends the changes of the bars to the views.
    Returns the number of rows that were stored, changed or deleted.
    """
    window = {
        "start": "-infinity" if start is None else start.isoformat(),
        "end": "infinity" if end is None else end.isoformat(),
    }
    written = 0
    with connection.cursor(row_factory=dict_row) as cursor:
        for view in cursor.execute(queries["views_refreshable"]).fetchall():
            more = name is None or view["name"] == name
            while more:
                done = cursor.execute(
                    queries["views_slice"], {"id": view["id"], **window}
                ).fetchone()
                if done is None:  # the version was dropped meanwhile
                    break
                cursor.execute(queries["refresh_known"])
                written += done["rows_written"]
                more = done["more"]
                if more and not done["rows_written"]:
                    # A slice skips rows whose bars have marks that features_1m has not taken yet.
                    refresh(connection, start, end)
        done = {"serve_complete_views": True}
        while done and done["serve_complete_views"]:
            done = cursor.execute(queries["views_serve_complete"]).fetchone()
    return written
