"""Random views and random histories of bars, and the check of every stored row.

The long run:

    python -m feature_platform_tests.view_histories URL --count 10000 --seed 1

It needs the URL of a database of its own, with the schema, and prints the seed of the first history
that fails. `feature_platform_tests/integration/test_view_history.py` tries a few.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import psycopg
from psycopg import sql

import feature_platform.views as v
from feature_platform.errors import UserError
from feature_platform.views import FeatureView, bar, catalog
from feature_platform.views.expressions import BAR_FIELDS, Expression, parse_span, span_text
from feature_platform.views.verify import compare, served_views, slices_of
from feature_platform_tests.fix_engine import stored_bars
from feature_platform_tests.view_oracle import expected_rows, same

SYMBOLS = ("A", "B")
_START = datetime(2026, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)

_EMPTY = """
    DELETE FROM public.ohlcv_1m;
    DELETE FROM public.features_1m;
    DELETE FROM feature_platform.symbol_state;
    DELETE FROM feature_platform.features_1m_state;
    DELETE FROM feature_platform.dirty_log;
    DELETE FROM feature_platform.view_change;
    DELETE FROM feature_platform.view_symbol;
"""
_STORE = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    VALUES (%s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (symbol, ts) DO UPDATE SET open = excluded.open, high = excluded.high,
        low = excluded.low, close = excluded.close, vol = excluded.vol
"""
_SLICE = """
    SELECT feature_platform.view_slice(w.id, feature_platform.view_from(w, %s),
        feature_platform.view_from(w, %s), %s, true, %s)
    FROM feature_platform.feature_view w WHERE w.name = %s
"""


class Wrong(Exception):
    """A stored row that is not the expected one."""


# ==== random views ====


def random_expression(random: Random, depth: int, width: timedelta) -> Expression:
    """Return a number of random form, whose windows and lags nest up to `depth` deep."""

    def span(least: int = 1, most: int = 12) -> str:
        return span_text(width * random.randint(least, most))

    def below() -> Expression:
        return random_expression(random, depth - 1, width)

    if depth <= 0 or random.random() < 0.1:
        return getattr(bar, random.choice(BAR_FIELDS))  # type: ignore[no-any-return]
    kind = random.choice(["row"] * 5 + ["window"] * 5 + ["pair", "lag", "lag", "ema", "scan"])
    if kind == "window":
        names = ("sum", "mean", "std", "var", "zscore", "count", "min", "max", "first", "last")
        return getattr(v, random.choice(names))(below(), span())  # type: ignore[no-any-return]
    if kind == "pair":
        made = getattr(v, random.choice(("corr", "cov", "beta")))(below(), below(), span())
        assert isinstance(made, Expression)
        return made
    if kind == "lag":
        back: int | str = random.choice([1, 1, 2, 5, 0]) or span()
        return v.lag(below(), back)
    if kind == "ema":
        return v.ema(below(), span(1, 4))
    if kind == "scan":
        name = random.choice(("percentile_cont(0.5)", "percentile_cont(0.25)", "pg_catalog.avg"))
        return v.aggregate(name, below(), span(1, 6))
    return _row(random, below)


def _row(random: Random, below: Any) -> Expression:
    one = random.choice(
        ("ln", "exp", "sqrt", "abs", "sign", "neg", "square", "two", "where", "many")
    )
    x: Expression = below()
    if one == "neg":
        return -x
    if one == "square":
        return x**2
    if one == "two":
        y = random.choice([below(), 2, 0.1, -3.5])
        result: Expression = random.choice([x + y, x - y, x * y, x / y, v.log_ratio(x, y)])
        return result
    if one == "where":
        y = below()
        condition = random.choice(
            [x > y, x <= 1, x == y, x != y, (x > 0) & (y < 2), (x < y) | (y > 5), ~(x >= y)]
        )
        return v.where(condition, x, random.choice([y, 0.0, -1.0]))
    if one == "many":
        return random.choice([v.least, v.greatest])(x, below(), 1.5)
    made = getattr(v, one)(x)
    assert isinstance(made, Expression)
    return made


def random_views(random: Random, count: int = 3) -> list[FeatureView]:
    """Return some views of random columns, the first ones of one-minute bars."""
    made: list[FeatureView] = []
    widths = [
        ("1 minute", None),
        ("1 minute", None),
        ("5 minutes", None),
        ("15 minutes", "4 minutes"),
    ]
    while len(made) < count:
        every, offset = random.choice(widths)
        width = parse_span(every)
        columns = {
            f"c{at}": random_expression(random, random.randint(0, 4), width)
            for at in range(random.randint(1, 6))
        }
        try:
            made.append(FeatureView(f"view_{len(made)}", every, columns, offset))
        except UserError:  # such as a condition, or a look-back above the limit
            continue
    return made


# ==== random histories ====


@dataclass
class History:
    """One random history of bars in a database, with refreshes of random windows between."""

    conn: psycopg.Connection[Any]
    views: Sequence[FeatureView]
    random: Random
    now: int = 0
    done: list[str] = field(default_factory=list)

    def run(self, steps: int) -> int:
        """Run it in an empty database, and return the number of rows that were compared."""
        self.conn.execute(_EMPTY)
        for table in _tables(self.conn):
            self.conn.execute(sql.SQL("DELETE FROM {}").format(table))
        compared = 0
        for _ in range(steps):
            self._write()
            self._refresh()
            self._verify(final=False)
        self.refresh_all()
        compared += self._verify(final=True)
        self._against_the_oracle()
        self._against_a_build()
        return compared

    def fill(self, steps: int) -> None:
        """Empty the database, and store random bars and bring everything up to date."""
        self.conn.execute(_EMPTY)
        for table in _tables(self.conn):
            self.conn.execute(sql.SQL("DELETE FROM {}").format(table))
        for _ in range(steps):
            self._write()
        self.refresh_all()

    def _bar(self, symbol: str, minute: float) -> tuple[object, ...]:
        r = self.random
        price = r.choice([1.0, 100.0, 100.0, 12345.678, 1e-90, 1e90]) * (1 + r.random() / 10)
        high, low = price * (1 + r.random() / 100), price * (1 - r.random() / 100)
        close = min(max(r.uniform(low, high), low), high)
        vol = r.choice([0.0, r.random() * 100, 5.0, 5.0, 0.1, 1e-90, 1e60, 1e12 + 0.1])
        return symbol, _START + minute * _MINUTE, price, high, low, close, vol

    def _store(self, rows: list[tuple[object, ...]]) -> None:
        self.done.append(f"store {[(row[0], str(row[1])) for row in rows]}")
        with self.conn.cursor() as cursor, self.conn.transaction():
            cursor.executemany(_STORE, rows)

    def _write(self) -> None:
        r = self.random
        kind = r.choice(
            ["new"] * 6 + ["late"] * 2 + ["delete", "tick", "older", "forget", "truncate", "move"]
        )
        symbol = r.choice(SYMBOLS)
        anywhere = r.randint(0, self.now)
        if kind == "new":
            rows = []
            for _ in range(r.choice([1, 1, 1, 2, 5, 30])):
                self.now += r.choice([1, 1, 1, 1, 2, 3, 20, 200 if r.random() < 0.1 else 1])
                rows += [self._bar(s, self.now) for s in SYMBOLS if r.random() < 0.9]
            self._store(rows)
        elif kind == "late":
            self._store([self._bar(symbol, r.randint(0, self.now)) for _ in range(3)])
        elif kind == "tick":
            self._store([self._bar(symbol, anywhere + r.randint(1, 59) / 60)])
        elif kind == "older":
            self._store([self._bar(symbol, -r.randint(1, 30))])
        elif kind == "delete":
            self._delete(symbol, anywhere, anywhere + r.randint(1, 8))
        elif kind == "move":
            self.done.append(f"move {symbol} {anywhere}")
            self.conn.execute(
                """UPDATE ohlcv_1m b SET ts = ts + interval '3 hours'
                   WHERE symbol = %s AND ts = %s AND NOT EXISTS (
                       SELECT FROM ohlcv_1m o
                       WHERE o.symbol = b.symbol AND o.ts = b.ts + interval '3 hours')""",
                (symbol, _START + anywhere * _MINUTE),
            )
        elif kind == "truncate" and r.random() < 0.2:
            self.done.append("truncate")
            self.conn.execute("TRUNCATE ohlcv_1m")
        elif kind == "forget" and r.random() < 0.2:
            self.done.append(f"forget {symbol}")
            self.conn.execute("SELECT feature_platform.forget_symbol(%s)", [symbol])

    def _delete(self, symbol: str, lo: int, hi: int) -> None:
        self.done.append(f"delete {symbol} {lo} {hi}")
        self.conn.execute(
            "DELETE FROM ohlcv_1m WHERE symbol = %s AND ts >= %s AND ts < %s",
            (symbol, _START + lo * _MINUTE, _START + hi * _MINUTE),
        )

    def _refresh(self) -> None:
        r = self.random
        if r.random() < 0.7:
            until = _START + r.randint(0, self.now + 1) * _MINUTE if r.random() < 0.3 else None
            self.done.append(f"refresh features_1m until {until}")
            self.conn.execute("CALL refresh_features_1m(NULL, %s)", [until])
        for view in self.views:
            if r.random() < 0.4:
                continue
            hi = _START + timedelta(days=300)
            if r.random() < 0.3:
                hi = _START + r.randint(0, self.now + 2) * _MINUTE
            lo: object = "-infinity"
            if r.random() < 0.3:
                lo = min(_START + r.randint(0, self.now + 1) * _MINUTE, hi)
            rows = r.choice([1, 5, 50, 100_000])
            live = r.random() < 0.4
            self.done.append(f"refresh {view.name} {lo} {hi} live={live} rows={rows}")
            self.conn.execute(_SLICE, (lo, hi, live, rows, view.name))
        if r.random() < 0.2:
            self.conn.execute("SELECT feature_platform.clear_view_changes()")

    def refresh_all(self) -> None:
        """Bring everything up to date."""
        self.conn.execute("CALL refresh_features_1m(NULL, NULL)")
        catalog.refresh_views(self.conn)

    def _verify(self, *, final: bool) -> int:
        rows = 0
        for view in served_views(self.conn):
            for symbol in SYMBOLS:
                for lo, hi in slices_of(self.conn, view, symbol, None, None):
                    found = compare(self.conn, view, symbol, lo, hi, 5)
                    rows += found.rows
                    if found.mismatches or (final and found.pending):
                        self._fail(f"{view.name} {symbol}: {found}")
        failed = "SELECT name, error FROM feature_platform.feature_view WHERE error IS NOT NULL"
        for name, error in self.conn.execute(failed).fetchall():
            self._fail(f"{name} failed: {error}")
        return rows

    def stored(self, view: FeatureView) -> dict[tuple[str, int], dict[str, Any]]:
        """Return the stored rows of a view."""
        read = sql.SQL(
            "SELECT symbol, (extract(epoch FROM bucket) * 1000000)::bigint, {} FROM {}"
        ).format(
            sql.SQL(", ").join(map(sql.Identifier, view.columns)),
            sql.Identifier("public", view.name),
        )
        return {
            (symbol, bucket): dict(zip(view.columns, values, strict=True))
            for symbol, bucket, *values in self.conn.execute(read)
        }

    def _against_the_oracle(self) -> None:
        bars = stored_bars(self.conn)
        for view in self.views:
            stored = self.stored(view)
            expected = {
                (symbol, bucket): row
                for symbol in SYMBOLS
                for bucket, row in expected_rows(
                    view, [one for one in bars if one.symbol == symbol]
                ).items()
            }
            if stored.keys() != expected.keys():
                self._fail(f"{view.name}: rows {sorted(stored.keys() ^ expected.keys())}")
            for key, row in expected.items():
                for column, value in row.items():
                    if not same(stored[key][column], value):
                        self._fail(
                            f"{view.name}.{column} {key}: stored {stored[key][column]!r}, the"
                            f" definition gives {value!r}: {view.columns[column]}"
                        )

    def _against_a_build(self) -> None:
        before = {view.name: self.stored(view) for view in self.views}
        for table in _tables(self.conn):
            self.conn.execute(sql.SQL("DELETE FROM {}").format(table))
        self.conn.execute("DELETE FROM feature_platform.view_symbol")
        self.conn.execute(
            "SELECT feature_platform.begin_view_build(id) FROM feature_platform.feature_view"
        )
        self.refresh_all()
        for view in self.views:
            built = self.stored(view)
            if {k: repr(r) for k, r in built.items()} != {
                k: repr(r) for k, r in before[view.name].items()
            }:
                self._fail(f"{view.name}: a build from nothing stores other bits")

    def _fail(self, problem: str) -> None:
        raise Wrong("\n".join([problem, *map(str, self.views), *self.done]))


def _tables(conn: psycopg.Connection[Any]) -> list[sql.Composable]:
    names = conn.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'feature_views'::regnamespace"
    )
    return [sql.Identifier("feature_views", name) for (name,) in names]


def run_histories(
    conn: psycopg.Connection[Any], seed: int, count: int, *, of_views: int = 10, steps: int = 8
) -> int:
    """Run so many histories, with other views after each `of_views`; return the rows compared.

    Raises Wrong, with the seed, at the first stored value that is not the expected one.
    """
    compared = 0
    conn.prepare_threshold = None  # views of one name have other types after a while
    views: list[FeatureView] = []
    for number in range(seed, seed + count):
        random = Random(number)
        if (number - seed) % of_views == 0:
            for name in {view.name for view in catalog.list_views(conn)}:
                catalog.drop(conn, name)
            views = random_views(random)
            conn.execute(_EMPTY)
            catalog.apply(conn, views)
        try:
            compared += History(conn, views, random).run(steps)
        except Exception as error:
            error.add_note(
                f"seed {number}, views of seed {seed + (number - seed) // of_views * of_views}"
            )
            raise
    return compared


def main() -> None:
    """Run histories from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    with psycopg.connect(given.url, autocommit=True) as conn:
        done = rows = 0
        while done < given.count:
            some = min(100, given.count - done)
            rows += run_histories(conn, given.seed + done, some)
            done += some
            print(
                f"{done:,} histories, {rows:,} rows, {time.monotonic() - began:.0f} s", flush=True
            )


if __name__ == "__main__":
    main()
