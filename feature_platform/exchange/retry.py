"""Calls to an exchange: which of its errors pass, how long to wait, and when to give up."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import ccxt
import requests
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from feature_platform.errors import UserError
from feature_platform.settings import PREFIX, redact

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# ccxt takes these for an exchange that is away; but what is not there, or not allowed here, will
# not be in a minute either.
_FINAL_STATUSES = frozenset({400, 404, 405, 410, 451})
_PASSING_STATUSES = frozenset({408, 418, 425, 429})

# What ccxt's own code raises when an answer is not of the form that it expects.
_MISREAD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

_LONGEST_MESSAGE = 300

# No exchange bars a client for longer; what asks for more is taken for that. In seconds.
_LONGEST_RETRY_AFTER = 3 * 86_400.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Say how long to go on when an exchange does not answer. Times are in seconds.

    attempts: how often to ask in all.
    first_wait: before the second attempt; it doubles from then on, up to longest_wait.
    jitter: up to so much is added to each wait at random, so that many do not return together.
    longest_retry_after: when the exchange asks for more time than that, give up at once.
    sleep: what waits.
    """

    attempts: int = 6
    first_wait: float = 0.5
    longest_wait: float = 20.0
    jitter: float = 0.5
    longest_retry_after: float = 90.0
    sleep: Callable[[float], None] = time.sleep


class ExchangeUnavailable(Exception):
    """The exchange would not answer what it was asked, and may later.

    last_error: what it, or the way to it, said last.
    retry_after: seconds after which it wants to be asked again, where it said so.
    unanswered: the ranges of minutes that it was asked for and has not answered for.
    """

    def __init__(
        self, message: str, last_error: Exception | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.last_error = last_error
        self.retry_after = retry_after
        self.unanswered: tuple[tuple[datetime, datetime], ...] = ()


class UnknownMarket(UserError):
    """The exchange does not have a symbol: delisted, renamed, or never there."""


class Calls:
    """Call an exchange until it answers, as patiently as is said.

    name: the exchange's, for messages.
    """

    def __init__(self, name: str, patience: Patience) -> None:
        self._name = name
        self._patience = patience
        self._back_off = wait_exponential(
            multiplier=patience.first_wait, max=patience.longest_wait
        ) + wait_random(0, patience.jitter)
        self._barred_until = 0.0
        self._barred_by: Exception | None = None

    def __call__(self, call: Callable[[], _Result]) -> _Result:
        """Return what `call` returns.

        Raises ExchangeUnavailable when what stood in the way did not pass in time, and at once
        while the exchange has said not to be asked; UserError for what does not pass.
        """
        barred = self._barred_until - time.monotonic()
        if barred > 0:
            raise ExchangeUnavailable(
                f"{self._name} is not to be asked for another {barred:.0f} s:"
                f" {describe(self._barred_by)}",
                self._barred_by,
                barred,
            )
        retrying = Retrying(
            retry=retry_if_exception(passes),
            wait=self._wait,
            stop=self._is_enough,
            sleep=self._patience.sleep,
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            result: _Result = retrying(_read, call)
        except ccxt.BaseError as error:
            raise self._final(error, int(retrying.statistics["attempt_number"])) from error
        return result

    def _is_enough(self, state: RetryCallState) -> bool:
        wanted = retry_after(_error(state))
        if wanted is not None and wanted > self._patience.longest_retry_after:
            return True
        return stop_after_attempt(self._patience.attempts)(state)

    def _wait(self, state: RetryCallState) -> float:
        wanted = retry_after(_error(state))
        wait = self._back_off(state)
        if wanted is None:
            return wait
        return max(wait, wanted + random.uniform(0, self._patience.jitter))

    def _tell(self, state: RetryCallState) -> None:
        assert state.next_action is not None
        _log.warning(
            "%s: %s; asking again in %.1f s",
            self._name,
            describe(_error(state)),
            state.next_action.sleep,
        )

    def _final(self, error: Exception, attempts: int) -> Exception:
        if not passes(error):
            return self._refusal(error)
        wanted = retry_after(error)
        if wanted is not None:
            self._barred_until, self._barred_by = time.monotonic() + wanted, error
        times = "once" if attempts == 1 else f"{attempts} times"
        return ExchangeUnavailable(
            f"{self._name} does not answer, asked {times}: {describe(error)}", error, wanted
        )

    def _refusal(self, error: Exception) -> UserError:
        reason = describe(error)
        if isinstance(error, ccxt.AuthenticationError):
            return UserError(
                f"{self._name} wants credentials, and the platform sends none: {reason};"
                f" choose another {PREFIX}EXCHANGE"
            )
        if isinstance(error, ccxt.BadSymbol):
            return UnknownMarket(
                f"{self._name} does not know a symbol of {PREFIX}SYMBOLS: {reason}"
            )
        if isinstance(error, ccxt.ExchangeNotAvailable):
            return UserError(
                f"{self._name} is not to be had from here, or not at its URL"
                f" ({PREFIX}EXCHANGE, {PREFIX}EXCHANGE_URL): {reason}"
            )
        return UserError(f"{self._name} refuses: {reason}")


def passes(error: BaseException) -> bool:
    """Tell whether an error of ccxt's may pass by itself."""
    status = _status(error)
    if isinstance(error, ccxt.ExchangeNotAvailable) and status in _FINAL_STATUSES:
        return False
    if isinstance(error, ccxt.AuthenticationError):
        return False
    if not isinstance(error, ccxt.BaseError) or status is None:
        return isinstance(error, ccxt.OperationFailed)
    return isinstance(error, ccxt.OperationFailed) or status >= 500 or status in _PASSING_STATUSES


def retry_after(error: BaseException) -> float | None:
    """Return the seconds after which the answer behind an error wants to be asked again."""
    response = _response(error)
    text = None if response is None else response.headers.get("Retry-After")
    if text is None:
        return None
    try:
        if re.fullmatch(r"\s*[0-9]+\s*", text):
            seconds = float(text)
        else:
            when = parsedate_to_datetime(text).replace(tzinfo=UTC)
            seconds = (when - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER)


def describe(error: BaseException | None) -> str:
    """Return what an error says, in one line of bounded length, and what caused it."""
    if error is None:
        return "no reason given"
    text = f"{type(error).__name__}: {error}"
    reasons = [one for one in _chain(error) if isinstance(one, OSError) and one.errno is not None]
    if reasons:
        text += f" ({reasons[-1].strerror})"
    line = " ".join(redact(text).split())
    return line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + "…"


def _read(call: Callable[[], _Result]) -> _Result:
    """Take an answer that ccxt cannot read for what it is."""
    try:
        return call()
    except _MISREAD as error:
        raise ccxt.BadResponse(f"an answer that cannot be read: {error!r}") from error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer behind an error."""
    response = _response(error)
    return None if response is None else response.status_code


def _response(error: BaseException) -> requests.Response | None:
    """Return the answer behind an error, where there was one."""
    for one in _chain(error):
        if isinstance(one, requests.RequestException):
            return one.response
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _error(state: RetryCallState) -> Any:
    assert state.outcome is not None
    return state.outcome.exception()
