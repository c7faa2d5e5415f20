"""The checks of the platform's database, bars and features, as they are now.

Each check is one statement of `sql/queries/validation.sql` that reads the newest hour at most, so
that its cost does not grow with the history. No part of this module depends on Dagster: a sensor,
a click in the UI and the tests call it alike.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import psycopg
from psycopg.rows import dict_row

from feature_platform.queries import queries
from feature_platform.schema import SCHEMA_HASH, SCHEMA_VERSION
from feature_platform.settings import get_settings
from feature_platform.verify import PASS, verify_rolling, verify_window

Severity = Literal["ERROR", "WARN"]
Table = Literal["exchange_feed", "ohlcv_1m", "features_1m", "features_1m_policy"]
Value = int | float | str

SHOWN = 10  # offending rows
RECOMPUTED = "stored_equals_recomputed"

# What a table must have. Types are as PostgreSQL formats them.
BAR_COLUMNS = {
    "symbol": "text",
    "ts": "timestamp with time zone",
    "open": "double precision",
    "high": "double precision",
    "low": "double precision",
    "close": "double precision",
    "vol": "double precision",
    "source": "text",
    "inserted_at": "timestamp with time zone",
}
FEATURE_COLUMNS = {
    "symbol": "text",
    "bucket": "timestamp with time zone",
    "last_close": "double precision",
    "vol": "double precision",
    "log_return": "double precision",
    "n_1d": "integer",
    "ma_vol_1d": "double precision",
    "std_vol_1d": "double precision",
    "volume_z": "double precision",
    "vwap_gap": "double precision",
    "parkinson_vol": "double precision",
}
_BAR_OBJECTS = [
    "ohlcv_1m_pkey",
    "ohlcv_1m_symbol_check",
    "ohlcv_1m_ts_check",
    "ohlcv_1m_price_check",
    "ohlcv_1m_vol_check",
    "ohlcv_1m_source_check",
    "ohlcv_1m_inserted",
    "ohlcv_1m_updated",
    "ohlcv_1m_deleted",
    "ohlcv_1m_truncated",
]
_FEATURE_OBJECTS = ["features_1m_pkey", "features_1m_bucket_idx"]

# The newest bar may be this old: a few minutes more than a backfill over REST needs.
BAR_AGE = timedelta(minutes=5)
# How long after the end of its minute a row may take to come into being: a policy that runs once a
# minute finds a bar that came just after it a minute later.
SETTLE = timedelta(seconds=75)
# A missing minute that is younger may still be on its way.
GAP_AGE = timedelta(minutes=5)
# The recorder and Dagster account for minutes once a minute.
ACCOUNTED_AGE = timedelta(minutes=15)
DIRTY_AGE = timedelta(minutes=5)
# A recorder that lost its stream is back, and has asked for what it missed, within this time.
BEAT_AGE = timedelta(minutes=2)
PRICE_STEP = 0.3
STALE_BARS = 30
FLAT_ROWS = 10
SAMPLES = 3
# What the rolling verification may take of a tick; the nightly audit does the rest that is due.
ROLLING_SECONDS = 0.1


@dataclass(frozen=True)
class Check:
    """One check: its statement is the query `check_NAME`.

    table: the asset that it belongs to.
    noun: the things that are counted, in the plural.
    no_data: the summary where there is nothing to check yet.
    slow: reads an hour of all rows; runs every five minutes, not every minute.
    """

    name: str
    table: Table
    severity: Severity
    description: str
    noun: str
    no_data: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    slow: bool = False


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    checked: the number of things checked; 0 where there are none yet, which is no failure.
    measures: numbers and texts by name; Dagster draws the numbers over time.
    rows: the first offending rows.
    """

    check: Check
    passed: bool
    summary: str
    checked: int
    offending: int
    measures: Mapping[str, Value]
    rows: tuple[Mapping[str, Value], ...]

    @property
    def findings(self) -> str | None:
        """Name the findings of a failed check in 8 digits; None where it passed.

        They change with the offending symbols (and minutes, of rows that differ from the bars),
        not with ages and other numbers, which change every minute. Where not all offending rows
        are shown, they change when the number of them doubles or halves.
        """
        if self.passed:
            return None
        columns = ("symbol", "bucket") if self.check.name == RECOMPUTED else ("symbol",)
        found = sorted(str([row.get(column) for column in columns]) for row in self.rows)
        if self.offending > len(self.rows):
            found = [f"about 2^{self.offending.bit_length()}"]
        return hashlib.sha256("".join(found).encode()).hexdigest()[:8]


_NO_BARS = "there are no bars yet"
_NO_ROWS = "there are no features yet"

CHECKS: tuple[Check, ...] = (
    Check(
        "recorder_alive",
        "exchange_feed",
        "ERROR",
        "The recorder, where one was ever at work, has said within"
        f" {BEAT_AGE.seconds // 60} minutes that it hears every market, and that nothing it"
        " missed is still to be asked for.",
        "markets",
        "no recorder was ever at work",
        {"limit": BEAT_AGE},
    ),
    Check(
        "database_ready",
        "ohlcv_1m",
        "ERROR",
        "The server's version, encoding and extensions are ones that the platform can use, and"
        " the schema is the one that this code needs.",
        "preconditions",
        "",
        {"schema_version": SCHEMA_VERSION, "schema_hash": SCHEMA_HASH},
    ),
    Check(
        "bars_table",
        "ohlcv_1m",
        "ERROR",
        "ohlcv_1m has its columns, its key, its constraints and the triggers that record changes,"
        " and nothing is set that lets bars change unrecorded.",
        "columns, constraints and triggers",
        "",
        {
            "table": "public.ohlcv_1m",
            "columns": list(BAR_COLUMNS),
            "types": list(BAR_COLUMNS.values()),
            "objects": _BAR_OBJECTS,
        },
    ),
    Check(
        "bars_fresh",
        "ohlcv_1m",
        "ERROR",
        "The newest closed bar of every recorded symbol, or the newest minute for which the venue"
        f" had no trades, is at most {BAR_AGE.seconds // 60} minutes old: in the time of the data,"
        " not of the last materialisation.",
        "symbols",
        _NO_BARS,
        {"limit": BAR_AGE},
    ),
    Check(
        "no_future_bars",
        "ohlcv_1m",
        "ERROR",
        "No bar is of a minute that has not begun by the database's clock.",
        "symbols",
        _NO_BARS,
    ),
    Check(
        "minute_gaps",
        "ohlcv_1m",
        "WARN",
        f"No minute that is older than {GAP_AGE.seconds // 60} minutes waits to be explained, and"
        " none of the last seven days is unavailable.",
        "symbols",
        "no minute is accounted for yet",
        {"age": GAP_AGE},
    ),
    Check(
        "minutes_accounted_for",
        "ohlcv_1m",
        "ERROR",
        "Every minute of the newest half hour that is accounted for, and of a day of"
        f" {SAMPLES} symbols taken at random, has a bar or is listed as missing, never both and"
        " never neither.",
        "minutes",
        "no minute is accounted for yet",
        {"samples": SAMPLES, "limit": ACCOUNTED_AGE},
    ),
    Check(
        "bars_sane",
        "ohlcv_1m",
        "WARN",
        "The last hour has nothing that a bar may be and a market seldom is: no run of"
        f" {STALE_BARS} bars that trade at one price, no step over {PRICE_STEP:.0%}, no range of"
        " prices without volume.",
        "bars of the last hour",
        "there are no bars of the last hour",
        {"step": PRICE_STEP, "stale": STALE_BARS},
        slow=True,
    ),
    Check(
        "features_table",
        "features_1m",
        "ERROR",
        "features_1m has its columns, its key and the index on bucket, and nothing is set that lets"
        " rows change unrecorded.",
        "columns and indexes",
        "",
        {
            "table": "public.features_1m",
            "columns": list(FEATURE_COLUMNS),
            "types": list(FEATURE_COLUMNS.values()),
            "objects": _FEATURE_OBJECTS,
        },
    ),
    Check(
        "features_rows",
        "features_1m",
        "ERROR",
        "Every recorded symbol has at least 9 rows in 10 minutes, up to the newest minute whose row"
        " is due; minutes without trades count as rows. A symbol whose first bar is newer is not"
        " checked.",
        "symbols",
        _NO_BARS,
        {"settle": SETTLE},
    ),
    Check(
        "features_not_null",
        "features_1m",
        "ERROR",
        "The newest three rows of every symbol have a log_return and, after the first day, a"
        " volume_z.",
        "rows",
        _NO_ROWS,
    ),
    Check(
        "features_fresh",
        "features_1m",
        "ERROR",
        "Every recorded symbol that has bars has rows. The row of a minute that begins at T is due"
        f" at T + 60 s, and stored at most {SETTLE.seconds} s later, unless nothing was traded.",
        "symbols",
        _NO_BARS,
        {"settle": SETTLE},
    ),
    Check(
        "volume_z_shape",
        "features_1m",
        "WARN",
        f"In the last hour volume_z has no flat stretch of {FLAT_ROWS} rows, no NULL after the"
        " first day, and no hole where there are bars.",
        "minutes of the last hour",
        "there are no features of the last hour",
        {"flat": FLAT_ROWS, "settle": SETTLE},
        slow=True,
    ),
    Check(
        "dirty_age",
        "features_1m",
        "WARN",
        f"No row has been dirty for more than {DIRTY_AGE.seconds // 60} minutes.",
        "symbols",
        _NO_BARS,
        {"limit": DIRTY_AGE},
    ),
    Check(
        RECOMPUTED,
        "features_1m",
        "ERROR",
        f"The newest hour and an hour of the past of up to {SAMPLES} symbols, taken at random, and"
        " what was last found wrong, equal what is recomputed from the bars, bit for bit. Beside"
        f" them a pass compares all history within {PASS.days} days, a part each minute and the"
        " rest that is due every night.",
        "rows",
        _NO_ROWS,
    ),
    Check(
        "policy_present",
        "features_1m_policy",
        "ERROR",
        "features_1m has a refresh policy.",
        "policies",
        "",
    ),
    Check(
        "policy_healthy",
        "features_1m_policy",
        "ERROR",
        "The policy's last run began within two intervals, and none of the last ten minutes"
        " failed.",
        "policies",
        "there is no policy",
    ),
)

BY_NAME: Mapping[str, Check] = {check.name: check for check in CHECKS}


def evaluate(
    connection: psycopg.Connection[Any],
    names: Collection[str] | None = None,
    *,
    suspects: Iterable[tuple[str, str]] = (),
) -> list[CheckResult]:
    """Evaluate checks, all or those named, in the order of `CHECKS`.

    connection: in autocommit mode. A check whose statement the database refuses has failed, and
        the others go on; psycopg.OperationalError is raised when the connection is lost.
    suspects: symbols and minutes, in ISO-8601, of which `stored_equals_recomputed` looks at the
        hour beside those that it takes at random, so that what was wrong once is not forgotten.
    """
    return [
        _evaluate(connection, check, suspects)
        for check in CHECKS
        if names is None or check.name in names
    ]


def _evaluate(
    connection: psycopg.Connection[Any], check: Check, suspects: Iterable[tuple[str, str]]
) -> CheckResult:
    try:
        if check.name == RECOMPUTED:
            return _recompute(connection, check, suspects)
        return _ask(connection, check)
    except psycopg.Error as error:
        if connection.broken:
            raise
        reason = error.diag.message_primary or str(error)
        return CheckResult(check, False, f"cannot be checked: {reason}", 0, 1, {}, ())


def _ask(connection: psycopg.Connection[Any], check: Check) -> CheckResult:
    """Evaluate a check whose statement gives `checked`, `offending`, `rows` and measures."""
    # What is not recorded is history, such as an import: nobody expects it to go on.
    recorded = list(get_settings().symbols)
    parameters = {**check.parameters, "symbols": recorded, "show": SHOWN}
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(queries[f"check_{check.name}"], parameters).fetchone()
    assert row is not None, "the statement always gives one row"
    checked, offending = row.pop("checked"), row.pop("offending")
    rows = row.pop("rows") or []
    measures = {name: _plain(value) for name, value in row.items() if value is not None}
    return _result(check, checked, offending, measures, rows)


def _recompute(
    connection: psycopg.Connection[Any], check: Check, suspects: Iterable[tuple[str, str]]
) -> CheckResult:
    """Compare a sample of rows, and those under suspicion, with the bars."""
    hour = timedelta(hours=1)
    hours: list[tuple[str, datetime]] = []
    spans = connection.execute(queries["check_stored_spans"], {"samples": SAMPLES}).fetchall()
    for symbol, first, last in spans:
        back = random.uniform(0, max((last - first) / hour - 1, 0))
        past = (last - back * hour).astimezone(UTC).replace(second=0, microsecond=0)
        hours += [(symbol, last - hour), (symbol, past - hour)]
    for symbol, minute in suspects:
        at = datetime.fromisoformat(minute)
        if not any(one == symbol and start <= at < start + hour for one, start in hours):
            hours.append((symbol, at.replace(minute=0)))
    checked = mismatches = pending = 0
    rows: list[dict[str, Any]] = []
    rolling = verify_rolling(connection, seconds=ROLLING_SECONDS)
    reports = [verify_window(connection, symbol, start, start + hour) for symbol, start in hours]
    for report in (*reports, rolling):
        checked += report.rows
        mismatches += report.mismatches
        pending += report.pending
        rows.extend(vars(example) for example in report.examples)
    measures: dict[str, Value] = {
        "pending": pending,
        "days_of_the_pass": round(rolling.days, 3),
        "percent_of_the_pass": round(100 * rolling.part, 2),
    }
    result = _result(check, checked, mismatches, measures, rows)
    if timedelta(days=rolling.days) > PASS + timedelta(days=1):
        late = f"the pass over all history takes more than {PASS.days} days"
        result = replace(result, passed=False, summary=f"{result.summary}; {late}")
    return result


def _result(
    check: Check,
    checked: int,
    offending: int,
    measures: Mapping[str, Value],
    rows: list[dict[str, Any]],
) -> CheckResult:
    if not checked and not offending:
        summary = f"{check.no_data}: nothing to check"
    elif offending:
        summary = f"{offending:,} of {checked:,} {check.noun} offend"
    else:
        summary = f"{checked:,} {check.noun}, and all is well"
    shown = tuple({name: _plain(value) for name, value in row.items()} for row in rows[:SHOWN])
    return CheckResult(check, not offending, summary, checked, offending, measures, shown)


def _plain(value: Any) -> Value:
    """Return a value as what every store of metadata takes."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return float(value)
