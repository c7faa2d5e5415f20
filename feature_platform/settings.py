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


def _password_of(role: str) -> Any:
    return Field(
        description=f"Password with which `feature-platform db logins` lets"
        f" `feature_platform_{role}` log in. The services do not read it."
    )


class Settings(BaseSettings):
    """Hold the platform's settings, read from the environment.

    Each field's description is its line in docs/settings.md, which `make docs` writes.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    database_url: Annotated[
        SecretStr | None,
        Field(
            description="`postgresql://` URL of the database. Without it the platform starts the"
            " embedded server. Keep the password out of files with `PGPASSWORD` or `~/.pgpass`."
        ),
    ] = None
    home: Annotated[
        Path,
        Field(
            description="Directory of the embedded server's data, of the recorder's bars that the"
            " database could not store yet, and of Dagster's files. A relative path is relative"
            " to the working directory."
        ),
    ] = Path(".feature_platform")
    exchange: Annotated[
        str,
        Field(
            description="Exchange of the symbols without a prefix, by"
            " [ccxt](https://github.com/ccxt/ccxt)'s id: any with one-minute `fetchOHLCV`. If it is"
            " not set, the exchange that the database has bars of is used."
        ),
    ] = "binance"
    symbols: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Symbols to record, by ccxt's names, separated by commas. A symbol of"
            " another exchange has that exchange's id as a prefix, such as `kraken:BTC/USD`."
        ),
    ] = (
        "BTC/USDT",
        "ETH/USDT",
        "SOL/USDT",
        "XRP/USDT",
        "LINK/USDT",
    )
    exchange_url: Annotated[
        str | None,
        Field(
            description="Replaces scheme and host of the exchange's URLs, for the simulator or a"
            " proxy; its path, if it has one, goes before theirs. Plain `http` only to this"
            " machine. For several exchanges: `URL,kraken=URL`."
        ),
    ] = None
    archive_url: Annotated[
        str,
        Field(
            description="URL of the exchange's archives of bars, for `feature-platform import"
            " --from binance`. Plain `http` only to this machine."
        ),
    ] = "https://data.binance.vision"
    start_date: Annotated[
        date,
        Field(description="First UTC day that Dagster fetches, repairs and shows."),
    ] = date(2025, 1, 1)
    lake: Annotated[
        str | None,
        Field(
            description="Directory, or URL such as `s3://bucket/path`, of the lake: a copy of bars"
            " and features as Delta tables, see [lake.md](lake.md). Without it there is none. A"
            " relative path is relative to the working directory."
        ),
    ] = None
    gap_attempts: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="Number of requests to the exchange for missing minutes, with growing"
            " pauses, before the gap becomes `unavailable`.",
        ),
    ] = 10
    recorder_grace: Annotated[
        float,
        Field(
            ge=0,
            le=30,
            description="Seconds that the recorder waits after a minute's end for its last trades.",
        ),
    ] = 0.5
    recorder_stall: Annotated[
        float,
        Field(
            ge=1,
            description="Seconds without a message after which the recorder reconnects a stream,"
            " at most: a stream with frequent messages is reconnected earlier.",
        ),
    ] = 75.0
    recorder_memory: Annotated[
        int,
        Field(
            ge=0,
            description="Number of bars that the recorder keeps in memory while the database is"
            " unavailable. Further bars go to disk, into `recorder/` of `FEATURE_PLATFORM_HOME`.",
        ),
    ] = 10_000
    api_key: Annotated[
        SecretStr | None,
        Field(
            description="Key that clients of the model service send as"
            " `Authorization: Bearer KEY`; 16 characters or more. Without it the service accepts"
            " clients of this machine only."
        ),
    ] = None
    proxies: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="IP addresses of the proxies before the model service, separated by"
            " commas. Their header `X-Forwarded-For` names the client that limits count."
        ),
    ] = ()
    # A row is due 60 s after its minute began, and no later than 75 s after that. The newest row
    # is as old as the next one is late: 135 s after its own minute at most.
    stale_after: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Seconds after the end of its minute from which on the model service marks"
            " the newest row of a symbol as stale.",
        ),
    ] = 150.0
    serve_log: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Part of the answers with newest rows that the model service logs in"
            " `feature_platform.served`: 0 for none, 1 for all.",
        ),
    ] = 0.0
    drift_days: Annotated[
        int,
        Field(
            ge=7,
            le=365,
            description="Days of the reference with which the check `drift` compares the last hour"
            " and the last day: 7 to 365.",
        ),
    ] = 30
    drift_shift: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="Shift of a column's last hour above which the check `drift` warns, in"
            " standard deviations: above 0 and below 1.",
        ),
    ] = 0.75
    drift_psi: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Population stability index of a column's last day above which the check"
            " `drift` warns: above 0. It warns only if the index is also over 8 times the largest"
            " of the reference's days.",
        ),
    ] = 0.5
    drift_ks: Annotated[
        float,
        Field(
            ge=0,
            le=0.01,
            description="Probability of the Kolmogorov-Smirnov distance of a column's last day"
            " below which the check `drift` warns: 0 to 0.01. With 0 it never warns of the"
            " distance.",
        ),
    ] = 1e-15
    owner_password: Annotated[SecretStr | None, _password_of("owner")] = None
    recorder_password: Annotated[SecretStr | None, _password_of("recorder")] = None
    refresher_password: Annotated[SecretStr | None, _password_of("refresher")] = None
    orchestrator_password: Annotated[SecretStr | None, _password_of("orchestrator")] = None
    reader_password: Annotated[SecretStr | None, _password_of("reader")] = None
    clock: Annotated[
        InstanceOf[Clock],
        NoDecode,
        Field(
            description="For tests, on a simulated database: a faster clock for every process. Its"
            " start time, the real time of that start, and its speed, as in"
            " `2026-03-01T00:00Z@2026-11-25T13:30Zx60`."
        ),
    ] = WallClock()

    @field_validator("database_url")
    @classmethod
    def _names_a_database(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            check_url(url.get_secret_value())
        return url

    @field_validator("home")
    @classmethod
    def _is_a_directory(cls, home: Path) -> Path:
        absolute = _absolute(home)
        if absolute.exists() and not absolute.is_dir():
            raise ValueError(f"{absolute} is not a directory")
        return absolute

    @field_validator("lake")
    @classmethod
    def _is_absolute(cls, lake: str | None) -> str | None:
        if lake is None or "://" in lake:
            return lake
        absolute = str(_absolute(Path(lake)))
        if escape := re.search("%[0-9A-Fa-f]{2}", absolute):
            # The library of the lake reads it as another character, in some of its calls.
            raise ValueError(f"{absolute} has {escape[0]} in its name: choose another directory")
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


def _absolute(path: Path) -> Path:
    """Return an absolute path; raises ValueError for the home of an unknown user."""
    try:
        return Path.cwd() / path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path} names a user that this system does not know") from None


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
        # libpq's own message quotes the part that it cannot parse, which may be the password.
        raise ValueError(f"not a PostgreSQL URL; {example}") from None
    host, port, dbname = (str(parts.get(key) or "") for key in ("host", "port", "dbname"))
    if "@" in host + dbname or not re.fullmatch(r"[0-9,]*", port):
        # An @ or / in a password ends it early; libpq would then print its rest as a host name.
        raise ValueError(
            "special characters in the user or password must be percent-encoded"
            f" (@ as %40); {example}"
        )


def check_exchange_url(url: str) -> None:
    """Raise ValueError if `url` is not an exchange's, or is plain HTTP to another machine."""
    example = "write it as https://host[:port] or http://127.0.0.1:8090"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"not a URL; {example}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"not an http or https URL; {example}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"a user, password, query or fragment is not allowed; {example}")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError(f"plain http is for this machine only, and {host} is another; {example}")


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
