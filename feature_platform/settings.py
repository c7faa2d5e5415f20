"""The settings of the platform: one environment variable each, `FEATURE_PLATFORM_…`."""

from __future__ import annotations

import os
import re
from datetime import date
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, InstanceOf, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from feature_platform.clock import Clock, SimulatedClock, WallClock
from feature_platform.errors import UserError
from feature_platform.symbols import (
    by_exchange,
    check_exchange,
    check_symbol,
    is_text,
    split_symbol,
)

PREFIX = "FEATURE_PLATFORM_"


class Settings(BaseSettings):
    """Hold what the environment says about the platform.

    database_url: the PostgreSQL to use; without one the platform starts its own.
    home: the directory of the embedded server and of what the platform keeps, made absolute.
    exchange: the exchange that bars are fetched from, by ccxt's id.
    symbols: the symbols to fetch, by ccxt's names for them; one of another exchange carries that
        exchange's id, as in kraken:BTC/USD.
    exchange_url: replaces scheme and host of all of the exchange's URLs; its path, if it has
        one, goes before theirs. For several exchanges, as in URL,kraken=URL.
    archive_url: where the exchange's archives of bars are, for `import --from`.
    start_date: the first UTC day that the orchestration knows as a partition.
    owner_password, ..., reader_password: of the role of that name, for `db logins` to set.
    recorder_grace: how long after a minute's end the recorder waits for its last trades; seconds.
    recorder_stall: how long its stream may be silent before it is taken for dead; seconds.
    recorder_memory: how many bars it keeps in memory while the database is away; more go on disk.
    clock: what time it is on the platform, as SimulatedClock.parse reads it; by default the wall
        clock's.
    api_key: what those who ask the model service must send; without one, anyone on this machine
        may ask, and nobody else.
    proxies: addresses of proxies before the model service, whose X-Forwarded-For names the client.
    gap_attempts: how often the exchange is asked for missing minutes that it does not answer for.
    stale_after: seconds after its minute from which on the newest row of a symbol is stale.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    database_url: SecretStr | None = None
    home: Path = Path(".feature_platform")
    exchange: str = "binance"
    symbols: Annotated[tuple[str, ...], NoDecode] = (
        "BTC/USDT",
        "ETH/USDT",
        "SOL/USDT",
        "XRP/USDT",
        "LINK/USDT",
    )
    exchange_url: str | None = None
    archive_url: str = "https://data.binance.vision"
    start_date: date = date(2025, 1, 1)
    owner_password: SecretStr | None = None
    recorder_password: SecretStr | None = None
    refresher_password: SecretStr | None = None
    orchestrator_password: SecretStr | None = None
    reader_password: SecretStr | None = None
    recorder_grace: Annotated[float, Field(ge=0, le=30)] = 0.5
    recorder_stall: Annotated[float, Field(ge=1)] = 75.0
    recorder_memory: Annotated[int, Field(ge=0)] = 10_000
    clock: Annotated[InstanceOf[Clock], NoDecode] = WallClock()
    api_key: SecretStr | None = None
    proxies: Annotated[tuple[str, ...], NoDecode] = ()
    # A row is due 60 s after its minute began, and no later than 75 s after that; the newest one
    # is as old as the next one is late, which is 135 s after its own minute at most.
    gap_attempts: Annotated[int, Field(ge=1, le=1000)] = 10
    stale_after: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 150.0

    @field_validator("database_url")
    @classmethod
    def _names_a_database(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            check_url(url.get_secret_value())
        return url

    @field_validator("home")
    @classmethod
    def _is_a_directory(cls, home: Path) -> Path:
        try:
            absolute = Path.cwd() / home.expanduser()
        except RuntimeError:
            raise ValueError(f"{home} names a user that this system does not know") from None
        if absolute.exists() and not absolute.is_dir():
            raise ValueError(f"{absolute} is not a directory")
        return absolute

    @field_validator("symbols", mode="before")
    @classmethod
    def _are_a_list(cls, symbols: Any) -> Any:
        if isinstance(symbols, str):
            symbols = tuple(name.strip() for name in symbols.split(",") if name.strip())
        if not symbols:
            raise ValueError("no symbol; write them as BTC/USDT,ETH/USDT")
        for symbol in symbols:
            split_symbol(check_symbol(symbol))
        return tuple(dict.fromkeys(symbols))

    @model_validator(mode="after")
    def _are_of_one_exchange_each(self) -> Self:
        for symbol in self.symbols:
            at, name = split_symbol(symbol)
            if at == self.exchange and name in self.symbols:
                raise ValueError(f"{name} and {symbol} are the same symbol: remove one")
        return self

    @field_validator("api_key")
    @classmethod
    def _is_long(cls, key: SecretStr | None) -> SecretStr | None:
        secret = "" if key is None else key.get_secret_value()
        if key is not None and (len(secret) < 16 or not re.fullmatch(r"[!-~]+", secret)):
            raise ValueError("it needs 16 characters or more, of ASCII and without spaces")
        return key

    @field_validator("proxies", mode="before")
    @classmethod
    def _are_addresses(cls, proxies: Any) -> Any:
        if isinstance(proxies, str):
            proxies = tuple(part.strip() for part in proxies.split(",") if part.strip())
        for one in proxies:
            try:
                ip_address(one)
            except ValueError:
                raise ValueError(
                    f"{one!r} is not an IP address; write them as 127.0.0.1,10.0.0.2"
                ) from None
        return proxies

    @field_validator("exchange_url", "archive_url")
    @classmethod
    def _is_safe(cls, url: str | None) -> str | None:
        for name, one in _url_entries(url):
            check_exchange_url(one)
            if name:
                check_exchange(name, f"{name}=...")
        return url

    @field_validator("clock", mode="before")
    @classmethod
    def _is_a_clock(cls, clock: Any) -> Any:
        return SimulatedClock.parse(clock) if isinstance(clock, str) else clock

    def by_exchange(self) -> dict[str, tuple[str, ...]]:
        """Return the symbols of each exchange, as they are configured."""
        return by_exchange(self.symbols, self.exchange)

    def url_of(self, exchange: str) -> str | None:
        """Return the URL that stands for an exchange's own, None where it is its own."""
        urls = {name or self.exchange: url for name, url in _url_entries(self.exchange_url)}
        return urls.get(exchange)


@cache
def get_settings() -> Settings:
    """Return the settings, read once from the environment.

    Raises UserError naming the variable that holds a bad value.
    """
    for variable, text in os.environ.items():
        if variable.startswith(PREFIX) and not is_text(text):
            raise UserError(f"{variable}: it is not valid UTF-8")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        variable = PREFIX + str(first["loc"][0] if first["loc"] else "symbols").upper()
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{variable}: {reason}") from None


def _url_entries(urls: str | None) -> list[tuple[str, str]]:
    """Return each exchange's URL; the name is empty for the configured exchange's."""
    entries = []
    for part in (urls or "").split(","):
        name, sign, url = part.strip().partition("=")
        if not sign or "/" in name:  # a URL may have an equals sign in its path
            name, url = "", part.strip()
        if url:
            entries.append((name, url))
    return entries


def check_url(url: str) -> None:
    """Raise ValueError, without quoting any of it, when `url` cannot be a PostgreSQL URL."""
    example = "write it as postgresql://user:password@host:port/database"
    try:
        parts = conninfo_to_dict(url)
    except Error:
        # libpq's own message quotes the piece it stumbled on, which may be the password.
        raise ValueError(f"not a PostgreSQL URL; {example}") from None
    host, port, dbname = (str(parts.get(key) or "") for key in ("host", "port", "dbname"))
    if "@" in host + dbname or not re.fullmatch(r"[0-9,]*", port):
        # An @ or / in a password ends it early; libpq would then print its rest as a host name.
        raise ValueError(
            "special characters in the user or password must be percent-encoded"
            f" (@ as %40); {example}"
        )


def check_exchange_url(url: str) -> None:
    """Raise ValueError when `url` cannot stand for an exchange, or anybody could read along."""
    example = "write it as https://host[:port] or http://127.0.0.1:8090"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"not a URL; {example}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"not an http or https URL; {example}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"a user, password, query or fragment has no use here; {example}")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError(f"plain http is for this machine only, and {host} is another; {example}")


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
