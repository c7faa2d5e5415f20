"""The common parts of all benchmarks: databases, time measurement, and results."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from feature_platform import schema
from feature_platform.queries import parse_queries
from feature_platform.settings import get_settings
from feature_platform.verify import verify

Connection = psycopg.Connection[Any]
Side = Callable[[], float]

queries: Mapping[str, LiteralString] = parse_queries(
    Path(__file__).with_name("queries.sql").read_text(encoding="utf-8")
)


class WrongResultError(Exception):
    """The measured code gave a wrong result."""


@dataclass(frozen=True)
class Ratio:
    """A figure that depends little on the machine.

    value: the ratio of two times, or two speeds, measured in turns.
    at_most, at_least: the target; neither if there is none.
    """

    what: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def target(self) -> str:
        """Return the bound in words."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"

    @property
    def met(self) -> bool | None:
        """Return whether the target is met; None if there is none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least


@dataclass(frozen=True)
class Result:
    """The result of one benchmark.

    figures: counts, and speeds with their unit in the name.
    seconds: all measured times, by name, in the order of measurement.
    """

    ratios: list[Ratio]
    figures: dict[str, float]
    seconds: dict[str, list[float]]


class Workbench:
    """New databases for benchmarks, and their size.

    url: a superuser's URL of any database on the server.
    scale: the size of the benchmarks; 1 is full size.
    keep: the directory for databases that a later run continues; None: there are none.
    """

    def __init__(
        self,
        url: str,
        scale: float = 1.0,
        show: Callable[[str], None] = lambda _: None,
        keep: Path | None = None,
    ) -> None:
        self.url = url
        self.scale = scale
        self.show = show
        self.keep = keep

    def scaled(self, number: int, at_least: int = 1) -> int:
        """Return `number` at this workbench's scale."""
        return max(at_least, round(number * self.scale))

    def rounds(self, number: int, *, at_least: int = 1) -> int:
        """Return the number of repetitions: fewer only if the scale is too small for a result.

        at_least: of all scales.
        """
        return number if self.scale >= 0.05 else at_least

    @contextmanager
    def database(self, name: str, *, simulated: bool = False) -> Iterator[Connection]:
        """Create a database with the schema, give a connection to it, and drop it afterwards.

        simulated: whether it follows the clock of a session.
        """
        with (
            self.empty_database(name) as url,
            psycopg.connect(url, autocommit=True) as connection,
        ):
            schema.apply(connection, simulated=simulated)
            yield connection

    @contextmanager
    def empty_database(self, name: str) -> Iterator[str]:
        """Create a database with nothing in it, give its URL, and drop it afterwards."""
        identifier = sql.Identifier(f"benchmark_{name}")
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier)
        with psycopg.connect(self.url, autocommit=True) as server:
            server.execute(drop)
            server.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
            try:
                yield self._url(f"benchmark_{name}")
            finally:
                server.execute(drop)

    def url_of(self, connection: Connection) -> str:
        """Return the URL of a connection's database, for another process."""
        return self._url(connection.info.dbname)

    def _url(self, database: str) -> str:
        return urlsplit(self.url)._replace(path=f"/{database}").geturl()


@contextmanager
def another_session(connection: Connection) -> Iterator[Connection]:
    """Give a second connection to the same database."""
    with psycopg.connect(connection.info.dsn, autocommit=True) as other:
        yield other


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables while the body runs, and have the platform's settings read them."""
    before = dict(os.environ)
    os.environ.update(variables)
    get_settings.cache_clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        get_settings.cache_clear()


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleave(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Measure the sides in turn, so that a slow period of the machine affects all of them.

    sides: each prepares its data, and returns the measured seconds. Every other round goes
        backwards, so that no side always follows the same other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            seconds[name].append(sides[name]())
    return seconds


def ratio_of_medians(above: list[float], below: list[float]) -> float:
    """Return the median time of one side divided by that of the other."""
    return statistics.median(above) / statistics.median(below)


def value(connection: Connection, query: str, parameters: Mapping[str, Any] | None = None) -> int:
    """Return the one number that a query gives."""
    row = connection.execute(queries[query], parameters).fetchone()
    if row is None:
        raise WrongResultError(f"{query} gave no row")
    return int(row[0])


def require(expected: object, found: object, what: str) -> None:
    """Raise WrongResultError unless the found value equals the expected one."""
    if found != expected:
        raise WrongResultError(f"{what}: {found} instead of {expected}")


def require_exact(connection: Connection, **window: Any) -> int:
    """Raise WrongResultError unless stored rows equal their recomputation; return their number."""
    report = verify(connection, **window)
    require((0, 0), (report.mismatches, report.pending), "mismatches and rows still dirty")
    return report.rows
