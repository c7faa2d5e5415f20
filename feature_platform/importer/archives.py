"""Load the bars that are missing from the archives that an exchange publishes, over HTTP."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import IO, Any

import psycopg
import requests
from requests.exceptions import ChunkedEncodingError, Timeout
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from feature_platform.errors import UserError
from feature_platform.gaps import find_all_gaps, list_gaps
from feature_platform.importer.importer import ImportReport, KnownAt, import_input
from feature_platform.importer.opening import Input
from feature_platform.origin import exchange_settings
from feature_platform.queries import queries
from feature_platform.settings import Settings, get_settings
from feature_platform.symbols import exchange_of

# The number of archives that are loaded at the same time. They are imported one after the other,
# and wait on disk.
_AT_ONCE = 4

# A month with at least this many missing days is loaded as one archive.
_MONTH_FROM_DAYS = 3

_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
_CHUNK = 1 << 20
_ATTEMPTS = 4

_DAY = timedelta(days=1)
_SYMBOL = re.compile(r"(?:binance:)?(?P<base>[^/:]+)/(?P<quote>[^/:]+)(?::(?P<settle>[^/:]+))?")


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """The outcome of loading archives.

    imported: a report for each archive that was stored.
    present: the number of days that had all their bars before.
    absent: the archives that the exchange has not published.
    failed: the reason, by the name of each archive that could not be loaded.
    """

    imported: ImportReport
    present: int
    absent: tuple[str, ...]
    failed: dict[str, str]


class _Unavailable(Exception):
    """An archive could not be loaded; a retry may succeed."""


@dataclass(frozen=True, slots=True)
class _Period:
    """A month or a day that is loaded as one archive; `days` are its missing days."""

    name: str
    days: tuple[date, ...]

    @property
    def monthly(self) -> bool:
        return self.name.count("-") == 1


def import_archives(
    conn: psycopg.Connection[Any],
    symbol: str,
    start: str,
    end: str | None = None,
    *,
    dry_run: bool = False,
    known_at: KnownAt = "close",
    progress: Callable[[int, int], None] | None = None,
    pause: float = 1.0,
) -> ArchiveReport:
    """Load Binance's archives of one symbol from `start` to `end`, both included.

    Days that have all their bars are not loaded. So an import that was interrupted continues when
    it is run again. An archive whose checksum is wrong is not stored.

    start, end: months or days, such as 2024-01 or 2024-01-15; end is yesterday by default.
    known_at: as in ImportOptions.
    progress: called with the numbers of archives that are done and of all.
    pause: seconds before the first retry.
    Raises UserError where the symbol or the period is not valid.
    """
    folder, market = _address(symbol, exchange_settings(conn, symbol=symbol))
    row = conn.execute(queries["clock_now"]).fetchone()
    assert row is not None
    yesterday = row[0].astimezone(UTC).date() - _DAY
    first = _day(start, "--start", last=False)
    last = min(_day(end, "--end", last=True) if end else yesterday, yesterday)
    if last < first:
        raise UserError(f"--start {start}: no day from then to {last} is complete")
    missing = list(_missing_days(conn, symbol, first, last))
    periods = _periods(missing, yesterday)
    imported = []
    absent: list[str] = []
    failed: dict[str, str] = {}
    done, total = 0, len(periods)
    options = {"symbol": symbol, "dry_run": dry_run, "known_at": known_at}
    with closing(_Loader(folder, market, pause)) as loader:
        for period, loaded in loader.load(periods):
            if isinstance(loaded, _Unavailable):
                failed[loader.name(period)] = str(loaded)
            elif loaded is not None:
                with loaded, closing(Input.of_copy(loader.name(period), loaded)) as source:
                    try:
                        imported.append(import_input(conn, source, **options))
                    except UserError as error:
                        failed[loader.name(period)] = str(error)
            elif period.monthly:
                days = [_Period(day.isoformat(), (day,)) for day in period.days]
                periods += days
                total += len(days)
            else:
                absent.append(loader.name(period))
            done += 1
            if progress is not None:
                progress(done, total)
    present = (last - first).days + 1 - len(missing)
    return ArchiveReport(ImportReport(tuple(imported)), present, tuple(absent), failed)


def _address(symbol: str, settings: Settings) -> tuple[str, str]:
    """Return the archives' folder (spot, futures in USDT or in coins) and Binance's symbol."""
    exchange = exchange_of(symbol, settings.exchange)
    match = _SYMBOL.fullmatch(symbol.strip())
    if match is None:
        raise UserError(f"--symbol {symbol!r}: write a symbol of Binance as in BTC/USDT")
    if not exchange.startswith("binance"):
        raise UserError(
            f"--symbol {symbol!r} belongs to {exchange}; for the bars of Binance write "
            f"--symbol binance:{symbol}"
        )
    market = match["base"] + match["quote"]
    if match["settle"] is None:
        return "spot", market
    if match["settle"] == match["quote"]:
        return "futures/um", market
    return "futures/cm", f"{market}_PERP"


def _day(text: str, option: str, *, last: bool) -> date:
    """Return the day that a text names; of a month, its first or its last day."""
    try:
        if re.fullmatch(r"\d{4}-\d\d", text):
            month = date.fromisoformat(f"{text}-01")
            return _next_month(month) - _DAY if last else month
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{option} {text}: write a month or a day, as 2024-01 or 2024-01-15"
        ) from None


def _next_month(month: date) -> date:
    return (month + timedelta(days=31)).replace(day=1)


def _missing_days(
    conn: psycopg.Connection[Any], symbol: str, first: date, last: date
) -> Iterator[date]:
    """Yield the days that have missing minutes or lie outside of the stored bars."""
    find_all_gaps(conn)
    row = conn.execute(queries["import_bounds"], {"symbol": symbol}).fetchone()
    assert row is not None
    oldest, newest = row
    gaps: set[date] = set()
    for gap in list_gaps(conn, symbol, ["open", "unavailable"]):
        day = max(gap.start.astimezone(UTC).date(), first)
        while day <= min((gap.end - timedelta(minutes=1)).astimezone(UTC).date(), last):
            gaps.add(day)
            day += _DAY
    day = first
    while day <= last:
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        outside = oldest is None or start < oldest or start + _DAY > newest + timedelta(minutes=1)
        if outside or day in gaps:
            yield day
        day += _DAY


def _periods(missing: Sequence[date], yesterday: date) -> list[_Period]:
    """Return the archives to load: months where many days are missing, days elsewhere."""
    periods = []
    for month, group in groupby(missing, key=lambda day: day.replace(day=1)):
        days = tuple(group)
        if len(days) >= _MONTH_FROM_DAYS and _next_month(month) <= yesterday + _DAY:
            periods.append(_Period(f"{month:%Y-%m}", days))
        else:
            periods += [_Period(day.isoformat(), (day,)) for day in days]
    return periods


class _Loader:
    """Load archives, several at the same time, into files without a name."""

    def __init__(self, folder: str, market: str, pause: float) -> None:
        self._base = f"{get_settings().archive_url.rstrip('/')}/data/{folder}"
        self._market = market
        self._pause = pause
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="archive")
        self._running: list[tuple[_Period, Future[IO[bytes] | None]]] = []

    def close(self) -> None:
        """Wait for the archives that are being loaded, and delete them."""
        self._pool.shutdown(cancel_futures=True)
        for _, future in self._running:
            if future.done() and not future.cancelled() and future.exception() is None:
                copy = future.result()
                if copy is not None:
                    copy.close()

    def name(self, period: _Period) -> str:
        """Return the file name of an archive."""
        return f"{self._market}-1m-{period.name}.zip"

    def load(
        self, periods: Sequence[_Period]
    ) -> Iterator[tuple[_Period, IO[bytes] | _Unavailable | None]]:
        """Yield each period with its archive, None where it is not published.

        The caller may append periods during the iteration.
        """
        at = 0
        while at < len(periods) or self._running:
            while at < len(periods) and len(self._running) < _AT_ONCE:
                self._running.append((periods[at], self._pool.submit(self._load, periods[at])))
                at += 1
            period, future = self._running[0]
            try:
                found: IO[bytes] | _Unavailable | None = future.result()
            except _Unavailable as error:
                found = error
            self._running.pop(0)
            yield period, found

    def _load(self, period: _Period) -> IO[bytes] | None:
        attempts = Retrying(
            retry=retry_if_exception_type(_Unavailable),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_exponential(self._pause, max=30 * self._pause),
            reraise=True,
        )
        return attempts(self._load_once, period)

    def _load_once(self, period: _Period) -> IO[bytes] | None:
        name = self.name(period)
        span = "monthly" if period.monthly else "daily"
        url = f"{self._base}/{span}/klines/{self._market}/1m/{name}"
        try:
            with requests.get(f"{url}.CHECKSUM", timeout=_TIMEOUT) as answer:
                if answer.status_code == 404:
                    return None
                _check(answer)
                expected = answer.text.split()[0].lower() if answer.text.split() else ""
            with requests.get(url, timeout=_TIMEOUT, stream=True) as answer:
                if answer.status_code == 404:
                    return None
                _check(answer)
                return _verified(answer, expected)
        except (requests.ConnectionError, ChunkedEncodingError, Timeout) as error:
            raise _Unavailable(f"the download failed: {type(error).__name__}") from None


def _check(answer: requests.Response) -> None:
    if answer.status_code != 200:
        raise _Unavailable(f"the exchange answered with status {answer.status_code}")


def _verified(answer: requests.Response, expected: str) -> IO[bytes]:
    """Return a response's content as a file without a name; check its checksum."""
    digest = hashlib.sha256()
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        for chunk in answer.iter_content(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
        if digest.hexdigest() != expected:
            raise _Unavailable(f"wrong checksum: {digest.hexdigest()}, not {expected or 'any'}")
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy
