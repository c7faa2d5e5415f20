"""Retries of requests to an exchange: transient errors, waiting times, and when to give up."""

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

from feature_platform.errors import UserError, one_line
from feature_platform.settings import PREFIX

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# ccxt treats these as an unavailable exchange, but they are permanent: not found, or not allowed.
_PERMANENT_STATUSES = frozenset({400, 404, 405, 410, 451})
_TRANSIENT_STATUSES = frozenset({408, 418, 425, 429})

# Errors that ccxt raises for an answer of an unexpected form.
_MISREAD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

_LONGEST_MESSAGE = 300

# No exchange bans a client for longer; a larger value is reduced to this. In seconds.
_LONGEST_RETRY_AFTER = 3 * 86_400.0


@dataclass(frozen=True, slots=True)
class Patience:
    """The retries of a request that fails; times in seconds.

    attempts: the number of all requests.
    first_wait: the wait before the second request; it doubles up to longest_wait.
    jitter: the largest random addition to a wait, so that clients do not retry all at once.
    longest_retry_after: after a longer `Retry-After` there is no retry.
    sleep: the function that waits.
    """

    attempts: int = 6
    first_wait: float = 0.5
    longest_wait: float = 20.0
    jitter: float = 0.5
    longest_retry_after: float = 90.0
    sleep: Callable[[float], None] = time.sleep


class ExchangeUnavailable(Exception):
    """The exchange did not answer a request, and may answer it later.

    last_error: the last error of the exchange or of the network.
    retry_after: the seconds of the answer's `Retry-After`, None without one.
    unanswered: the requested ranges of minutes without an answer.
    """

    def __init__(
        self, message: str, last_error: Exception | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.last_error = last_error
        self.retry_after = retry_after
        self.unanswered: tuple[tuple[datetime, datetime], ...] = ()


class UnknownSymbol(UserError):
    """The exchange does not have a symbol: delisted, renamed, or never listed."""


class Calls:
    """Call an exchange, and retry transient errors.

    name: the exchange, for messages.
    """

    def __init__(self, name: str, patience: Patience) -> None:
        self._name = name
        self._patience = patience
        self._back_off = wait_exponential(
            multiplier=patience.first_wait, max=patience.longest_wait
        ) + wait_random(0, patience.jitter)
        self._banned_until = 0.0
        self._ban: Exception | None = None

    def __call__(self, call: Callable[[], _Result]) -> _Result:
        """Return the result of `call`.

        Raises ExchangeUnavailable when all retries failed, and at once during a ban; UserError for
        a permanent error.
        """
        banned = self._banned_until - time.monotonic()
        if banned > 0:
            raise ExchangeUnavailable(
                f"{self._name} accepts no requests for another {banned:.0f} s:"
                f" {describe(self._ban)}",
                self._ban,
                banned,
            )
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            wait=self._wait,
            stop=self._gives_up,
            sleep=self._patience.sleep,
            before_sleep=self._warn,
            reraise=True,
        )
        try:
            result: _Result = retrying(_read, call)
        except ccxt.BaseError as error:
            raise self._final(error, int(retrying.statistics["attempt_number"])) from error
        return result

    def _gives_up(self, state: RetryCallState) -> bool:
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

    def _warn(self, state: RetryCallState) -> None:
        assert state.next_action is not None
        error, wait = _error(state), state.next_action.sleep
        if isinstance(error, ccxt.DDoSProtection | ccxt.RateLimitExceeded):
            status = _status(error)
            shown = "" if status is None else f" ({status})"
            _log.warning("%s asks to slow down%s; next request in %.0f s", self._name, shown, wait)
        else:
            _log.warning("%s: %s; retry in %.1f s", self._name, describe(error), wait)

    def _final(self, error: Exception, attempts: int) -> Exception:
        if not is_transient(error):
            return self._permanent(error)
        wanted = retry_after(error)
        if wanted is not None:
            self._banned_until, self._ban = time.monotonic() + wanted, error
        times = "once" if attempts == 1 else f"{attempts} times"
        return ExchangeUnavailable(
            f"{self._name} does not answer, tried {times}: {describe(error)}", error, wanted
        )

    def _permanent(self, error: Exception) -> UserError:
        reason = describe(error)
        if isinstance(error, ccxt.AuthenticationError):
            return UserError(
                f"{self._name} requires credentials, and the platform sends none: {reason};"
                f" choose another {PREFIX}EXCHANGE"
            )
        if isinstance(error, ccxt.BadSymbol):
            return UnknownSymbol(
                f"{self._name} does not know a symbol of {PREFIX}SYMBOLS: {reason}"
            )
        if isinstance(error, ccxt.ExchangeNotAvailable):
            return UserError(
                f"{self._name} is not available from this place, or not at its URL"
                f" ({PREFIX}EXCHANGE, {PREFIX}EXCHANGE_URL): {reason}"
            )
        return UserError(f"{self._name} rejects the request: {reason}")


def is_transient(error: BaseException) -> bool:
    """Return whether an error of ccxt's is worth a retry."""
    status = _status(error)
    if isinstance(error, ccxt.ExchangeNotAvailable) and status in _PERMANENT_STATUSES:
        return False
    if isinstance(error, ccxt.AuthenticationError):
        return False
    if not isinstance(error, ccxt.BaseError) or status is None:
        return isinstance(error, ccxt.OperationFailed)
    return isinstance(error, ccxt.OperationFailed) or status >= 500 or status in _TRANSIENT_STATUSES


def retry_after(error: BaseException) -> float | None:
    """Return the seconds of the `Retry-After` header of an error's answer, None without one."""
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
    """Return an error and its cause in one line of bounded length."""
    if error is None:
        return "no reason given"
    if isinstance(error, ExchangeUnavailable | UserError):  # its text is complete
        return one_line(error)
    text = f"{type(error).__name__}: {error}"
    reasons = [one for one in _chain(error) if isinstance(one, OSError) and one.errno is not None]
    if reasons:
        text += f" ({reasons[-1].strerror})"
    line = one_line(text)
    return line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + "…"


def _read(call: Callable[[], _Result]) -> _Result:
    """Return the result of a call. Raises BadResponse for an answer that ccxt cannot read."""
    try:
        return call()
    except _MISREAD as error:
        raise ccxt.BadResponse(f"an answer that cannot be read: {error!r}") from error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error's answer, None without one."""
    response = _response(error)
    return None if response is None else response.status_code


def _response(error: BaseException) -> requests.Response | None:
    """Return the answer that caused an error, None without one."""
    for one in _chain(error):
        if isinstance(one, requests.RequestException):
            return one.response
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _error(state: RetryCallState) -> Any:
    assert state.outcome is not None
    return state.outcome.exception()
