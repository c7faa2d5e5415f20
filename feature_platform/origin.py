"""The exchange of this database's bars, which is stored; another exchange is rejected."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import psycopg

from feature_platform.errors import UserError
from feature_platform.queries import queries
from feature_platform.schema import is_simulated
from feature_platform.settings import PREFIX, Settings, get_settings, is_loopback
from feature_platform.symbols import by_exchange, split_symbol


def exchange_settings(
    connection: psycopg.Connection[Any],
    settings: Settings | None = None,
    symbol: str | None = None,
) -> Settings:
    """Return the settings by which bars are fetched for this database.

    Where neither exchange nor URL is set, the stored ones are used, so that a command beside
    `make dev` sends its requests to the same exchange.
    settings: by default the environment's.
    symbol: the only symbol to fetch; by default all configured symbols.
    Raises UserError where bars of another exchange, or real bars among simulated ones, would be
    stored.
    """
    chosen = settings or get_settings()
    row = connection.execute(queries["origin_exchange"]).fetchone()
    kept, url = (None, None) if row is None else row
    if not chosen.model_fields_set & {"exchange", "exchange_url"} and kept is not None:
        chosen = chosen.model_copy(update={"exchange": kept, "exchange_url": url})
    wanted = by_exchange(chosen.symbols if symbol is None else [symbol], chosen.exchange)
    database = connection.info.dbname
    if is_simulated(connection):
        for name in wanted:
            _require_simulated(database, name, chosen.url_of(name))
    without = [one for one in wanted.get(chosen.exchange, ()) if split_symbol(one).exchange is None]
    if without:
        _claim(connection, chosen, without[0])
    return chosen


def _require_simulated(database: str, name: str, url: str | None) -> None:
    if url is not None and is_loopback(urlsplit(url).hostname or ""):
        return
    raise UserError(
        f"database {database} has simulated bars, and {name} would be the real exchange: unset"
        f" {PREFIX}EXCHANGE and {PREFIX}EXCHANGE_URL for the simulated one, or take another"
        f" database by {PREFIX}HOME or {PREFIX}DATABASE_URL"
    )


def _claim(connection: psycopg.Connection[Any], chosen: Settings, symbol: str) -> None:
    """Store the exchange of symbols without a prefix, where none is stored yet."""
    # Only URLs of simulated exchanges are stored; a proxy's URL belongs to each process.
    url = chosen.exchange_url if is_simulated(connection) else None
    parameters = {"exchange": chosen.exchange, "url": url}
    row = connection.execute(queries["origin_claim_exchange"], parameters).fetchone()
    kept = None if row is None else row[0]
    if kept not in (None, chosen.exchange):
        raise UserError(
            f"database {connection.info.dbname} has bars of {kept} for symbols without an exchange,"
            f" and {symbol} would be of {chosen.exchange}: write it as {chosen.exchange}:{symbol},"
            f" or set {PREFIX}EXCHANGE={kept}, or take another database"
        )
