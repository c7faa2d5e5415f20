"""The checks of the database, its bars and its features.

A check is one statement of `sql/queries/validation.sql`. It reads at most the newest hour, so that
its cost does not grow with the history. This module does not import Dagster: the sensor, a click in
the UI and the tests call the same function.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from feature_platform.queries import queries
from feature_platform.schema import SCHEMA_HASH, SCHEMA_VERSION
from feature_platform.settings import get_settings
from feature_platform.skew import skew
from feature_platform.tables import BAR_COLUMNS, FEATURE_COLUMNS
from feature_platform.verify import (
    EXAMPLES,
    PASS,
    VerifyReport,
    verify_rolling,
    verify_window,
)

Severity = Literal["ERROR", "WARN"]
Table = Literal["exchange_feed", "ohlcv_1m", "features_1m", "features_1m_policy"]
Value = int | float | str

_VERBS = {"is": "are", "has": "have"}
_PLURAL = re.compile(r"^(is|has)\b")
_ISO_MINUTE = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):00(?:Z|\+00:00)$")

# The most findings that a result holds.
SHOWN = 10
RECOMPUTED = "stored_equals_recomputed"
SERVED = "served_equals_recomputed"

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

# The largest age of the newest bar: a few minutes more than a backfill over REST needs.
BAR_AGE = timedelta(minutes=5)
# The longest time from the end of a minute to its row: a policy that runs once a minute needs a
# minute for a bar that arrives just after a run.
SETTLE = timedelta(seconds=75)
# The bar of a younger missing minute may still arrive.
GAP_AGE = timedelta(minutes=5)
# The recorder and Dagster account for minutes once a minute.
ACCOUNTED_AGE = timedelta(minutes=15)
BACKLOG_AGE = timedelta(minutes=5)
# The longest time in which a recorder reconnects and requests the minutes that it missed.
BEAT_AGE = timedelta(minutes=2)
PRICE_STEP = 0.3
STALE_BARS = 30
FLAT_ROWS = 10
SAMPLES = 3
# The served rows that are compared each hour.
SERVED_SAMPLE = 200
# The most seconds that the rolling verification takes of a tick; the nightly audit does the rest.
ROLLING_SECONDS = 0.1


@dataclass(frozen=True)
class Check:
    """One check.

    table: the asset of the check.
    noun: the singular and the plural of the things that it counts.
    good, bad: the result in words: "360 rows checked, all equal", "1 of 360 rows is wrong".
    no_data: the reason why there is nothing to check in an empty database.
    slow: reads an hour of all rows; runs every five minutes, not every minute.
    query: the name of its statement; by default `check_NAME`.
    """

    name: str
    table: Table
    severity: Severity
    description: str
    noun: tuple[str, str]
    good: str
    bad: str
    no_data: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    slow: bool = False
    query: str = ""

    @property
    def statement(self) -> str:
        """Return the name of the query."""
        return self.query or f"check_{self.name}"


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    checked: the number of things checked; 0 in an empty database, where the check passes.
    wrong: the number of things that are wrong.
    measures: numbers and texts by name; Dagster plots the numbers over time.
    rows: the first findings.
    """

    check: Check
    passed: bool
    summary: str
    checked: int
    wrong: int
    measures: Mapping[str, Value]
    rows: tuple[Mapping[str, Value], ...]

    @property
    def findings(self) -> str | None:
        """Return a digest of the findings of a failed check, 8 digits; None if it passed.

        It changes with the symbols that are wrong (for rows that differ from the bars, with their
        minutes, too), but not with ages and other numbers, which change every minute. If there are
        more findings than shown, it changes when their number doubles or halves.
        """
        if self.passed:
            return None
        columns = ("symbol", "bucket") if self.check.name == RECOMPUTED else ("symbol",)
        found = sorted(str([row.get(column) for column in columns]) for row in self.rows)
        if self.wrong > len(self.rows):
            found = [f"about 2^{self.wrong.bit_length()}"]
        return hashlib.sha256("".join(found).encode()).hexdigest()[:8]


_NO_BARS = "there are no bars yet"
_NO_ROWS = "there are no features yet"
_SYMBOLS = ("symbol", "symbols")
_ROWS = ("row", "rows")
_POLICIES = ("policy", "policies")

CHECKS: tuple[Check, ...] = (
    Check(
        "recorder_alive",
        "exchange_feed",
        "ERROR",
        f"Within the last {BEAT_AGE.seconds // 60} minutes the recorder received updates of every"
        " recorded symbol, and fetched the minutes that it missed. Passes where no recorder has"
        " ever run.",
        _SYMBOLS,
        "all live",
        "is not live",
        "no recorder has ever run here",
        {"limit": BEAT_AGE},
    ),
    Check(
        "database_ready",
        "ohlcv_1m",
        "ERROR",
        "The platform can use the server's version, encoding and extensions, and the schema has"
        " the version that this code needs.",
        ("precondition", "preconditions"),
        "all met",
        "is not met",
        "",
        {"schema_version": SCHEMA_VERSION, "schema_hash": SCHEMA_HASH},
    ),
    Check(
        "bars_table",
        "ohlcv_1m",
        "ERROR",
        "ohlcv_1m has its columns, its key, its constraints and the triggers that record changes,"
        " and no setting lets bars change without a record.",
        ("column, constraint or trigger", "columns, constraints and triggers"),
        "all in place",
        "is wrong",
        "",
        {
            "table": "public.ohlcv_1m",
            "columns": list(BAR_COLUMNS),
            "types": list(BAR_COLUMNS.values()),
            "objects": _BAR_OBJECTS,
        },
        query="check_table",
    ),
    Check(
        "bars_fresh",
        "ohlcv_1m",
        "ERROR",
        "The newest closed bar of every recorded symbol, or the newest minute for which the"
        f" exchange had no trades, is at most {BAR_AGE.seconds // 60} minutes old. The age is that"
        " of the data, not that of the last materialisation.",
        _SYMBOLS,
        "all current",
        "is late",
        _NO_BARS,
        {"limit": BAR_AGE},
    ),
    Check(
        "no_future_bars",
        "ohlcv_1m",
        "ERROR",
        "No bar has a time after the current minute of the database's clock.",
        _SYMBOLS,
        "none in the future",
        "has bars of the future",
        _NO_BARS,
    ),
    Check(
        "minute_gaps",
        "ohlcv_1m",
        "WARN",
        f"No minute older than {GAP_AGE.seconds // 60} minutes waits for an answer of the exchange,"
        " and no minute of the last seven days is unavailable.",
        _SYMBOLS,
        "all complete",
        "has missing minutes",
        "no minute is accounted for yet",
        {"age": GAP_AGE},
    ),
    Check(
        "minutes_accounted_for",
        "ohlcv_1m",
        "ERROR",
        "Every minute has a bar or is listed as missing, and not both: checked for the newest half"
        f" hour that is accounted for, and for a random day of {SAMPLES} symbols.",
        ("minute", "minutes"),
        "all accounted for",
        "is not accounted for",
        "no minute is accounted for yet",
        {"samples": SAMPLES, "limit": ACCOUNTED_AGE},
    ),
    Check(
        "bars_sane",
        "ohlcv_1m",
        "WARN",
        "The bars of the last hour look like real trading: no price that stays the same for"
        f" {STALE_BARS} bars with volume, no step over {PRICE_STEP:.0%}, and no range of prices"
        " without volume.",
        ("bar of the last hour", "bars of the last hour"),
        "all plausible",
        "is unusual",
        "there are no bars of the last hour",
        {"step": PRICE_STEP, "stale": STALE_BARS},
        slow=True,
    ),
    Check(
        "features_table",
        "features_1m",
        "ERROR",
        "features_1m has its columns, its key and the index on bucket, and no setting hides rows or"
        " changes them without a record.",
        ("column or index", "columns and indexes"),
        "all in place",
        "is wrong",
        "",
        {
            "table": "public.features_1m",
            "columns": list(FEATURE_COLUMNS),
            "types": list(FEATURE_COLUMNS.values()),
            "objects": _FEATURE_OBJECTS,
        },
        query="check_table",
    ),
    Check(
        "features_rows",
        "features_1m",
        "ERROR",
        "Every recorded symbol has at least 9 rows in the 10 minutes up to the newest row that is"
        " due; minutes without trades count as rows. A symbol whose first bar is newer is not"
        " checked.",
        _SYMBOLS,
        "all complete",
        "has too few rows",
        _NO_BARS,
        {"settle": SETTLE},
    ),
    Check(
        "features_not_null",
        "features_1m",
        "ERROR",
        "The newest three rows of every symbol have a log_return and, after the first day, a"
        " volume_z.",
        _ROWS,
        "none with a NULL",
        "has a NULL",
        _NO_ROWS,
    ),
    Check(
        "features_fresh",
        "features_1m",
        "ERROR",
        "Every recorded symbol with bars has rows. The row of a minute that begins at T is due at"
        f" T + 60 s, and stored at most {SETTLE.seconds} s later, unless there were no trades.",
        _SYMBOLS,
        "all current",
        "is late",
        _NO_BARS,
        {"settle": SETTLE},
    ),
    Check(
        "volume_z_shape",
        "features_1m",
        "WARN",
        f"In the last hour volume_z has no flat stretch of {FLAT_ROWS} rows, no NULL after the"
        " first day of a symbol, and no missing row where there is a bar.",
        ("minute of the last hour", "minutes of the last hour"),
        "all plausible",
        "is unusual",
        "there are no features of the last hour",
        {"flat": FLAT_ROWS, "settle": SETTLE},
        slow=True,
    ),
    Check(
        "refresh_backlog",
        "features_1m",
        "WARN",
        f"No row has been waiting for a refresh for more than {BACKLOG_AGE.seconds // 60} minutes.",
        _SYMBOLS,
        "none waiting too long",
        "has been waiting too long",
        _NO_BARS,
        {"limit": BACKLOG_AGE},
    ),
    Check(
        RECOMPUTED,
        "features_1m",
        "ERROR",
        f"Stored features equal their recomputation from the bars, bit for bit: of up to {SAMPLES}"
        " random symbols the newest hour and a random past hour, and the hours of rows that were"
        f" wrong before. A rolling pass also compares all history within {PASS.days} days, a part"
        " each minute and the rest every night.",
        _ROWS,
        "all equal",
        "is wrong",
        _NO_ROWS,
    ),
    Check(
        SERVED,
        "features_1m",
        "ERROR",
        f"Rows that the model service has served equal their computation from the bars that were"
        f" known then: a sample of {SERVED_SAMPLE} rows of its log, once an hour.",
        ("served row", "served rows"),
        "all equal",
        "is wrong",
        "the log of served rows has none since the last check",
    ),
    Check(
        "policy_present",
        "features_1m_policy",
        "ERROR",
        "features_1m has a refresh policy.",
        _POLICIES,
        "present",
        "is missing",
        "",
    ),
    Check(
        "policy_healthy",
        "features_1m_policy",
        "ERROR",
        "The policy's last run began within the last two intervals, and no run of the last ten"
        " minutes failed.",
        _POLICIES,
        "healthy",
        "is not healthy",
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

    connection: in autocommit mode. A check whose statement fails has failed, and the others are
        evaluated. Raises psycopg.OperationalError when the connection is lost.
    suspects: symbols and minutes (ISO-8601) of rows that were wrong. `stored_equals_recomputed`
        compares their hours again, besides the hours that it takes at random.
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
        if check.name == SERVED:
            return _served(connection, check)
        return _query(connection, check)
    except psycopg.Error as error:
        if connection.broken:
            raise
        reason = error.diag.message_primary or str(error)
        return CheckResult(check, False, f"cannot be checked: {reason}", 0, 1, {}, ())


def _query(connection: psycopg.Connection[Any], check: Check) -> CheckResult:
    """Evaluate a check whose statement returns `checked`, `wrong`, `rows` and measures."""
    # Other symbols are history, such as an import: no new bars of them are expected.
    recorded = list(get_settings().symbols)
    parameters = {**check.parameters, "symbols": recorded, "show": SHOWN}
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(queries[check.statement], parameters).fetchone()
    assert row is not None, "the statement always gives one row"
    checked, wrong = row.pop("checked"), row.pop("wrong")
    rows = row.pop("rows") or []
    measures = {name: _plain(value) for name, value in row.items() if value is not None}
    return _result(check, checked, wrong, measures, rows)


def _recompute(
    connection: psycopg.Connection[Any], check: Check, suspects: Iterable[tuple[str, str]]
) -> CheckResult:
    """Compare a sample of rows, and those that were wrong before, with the bars."""
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
    rolling = verify_rolling(connection, seconds=ROLLING_SECONDS)
    reports: list[VerifyReport] = [
        verify_window(connection, symbol, start, start + hour) for symbol, start in hours
    ]
    reports.append(rolling)
    checked, pending = sum(one.rows for one in reports), sum(one.pending for one in reports)
    examples = dict.fromkeys(example for one in reports for example in one.examples)
    mismatches = sum(one.mismatches for one in reports)
    if all(len(one.examples) < EXAMPLES for one in reports):
        # All wrong values are known: a row that two of the windows contain counts once.
        mismatches = len({(one.view, one.symbol, one.bucket) for one in examples})
    rows = [vars(example) for example in examples]
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


def _served(connection: psycopg.Connection[Any], check: Check) -> CheckResult:
    """Return the result of this hour's comparison of served rows; make it, if there is none."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(queries["skew_last_check"]).fetchone()
        if row is None:
            since = connection.execute(queries["skew_unchecked_since"]).fetchone()
            assert since is not None, "the statement always gives one row"
            report = skew(connection, since=since[0], sample=SERVED_SAMPLE)
            row = {**vars(report), "examples": [one.as_json() for one in report.examples]}
            cursor.execute(queries["skew_note"], {"result": Jsonb(row)})
    measures = {name: row[name] for name in ("mismatch", "missing", "extra", "not_kept")}
    wrong = min(row["rows"], row["mismatch"] + row["missing"] + row["extra"])
    return _result(check, row["rows"], wrong, measures, row["examples"])


def _result(
    check: Check,
    checked: int,
    wrong: int,
    measures: Mapping[str, Value],
    rows: list[dict[str, Any]],
) -> CheckResult:
    shown = tuple({name: _plain(value) for name, value in row.items()} for row in rows[:SHOWN])
    singular, plural = check.noun
    if not checked and not wrong:
        summary = f"{check.no_data}: nothing to check"
    elif wrong:
        bad = check.bad if wrong == 1 else _PLURAL.sub(lambda verb: _VERBS[verb[0]], check.bad)
        summary = f"{wrong:,} of {checked:,} {plural} {bad}"
        if shown and (first := _place(shown[0])):
            summary += f": {first}" if wrong == 1 else f", first {first}"
    else:
        summary = f"{checked:,} {singular if checked == 1 else plural} checked, {check.good}"
    return CheckResult(check, not wrong, summary, checked, wrong, measures, shown)


def _place(row: Mapping[str, Value]) -> str:
    """Return the symbol, the minute and the column or the reason of a finding, in one line."""
    names = ("symbol", "bucket", "ts", "from", "column", "what", "problem")
    found = (str(row[name]) for name in names if row.get(name))
    return " ".join(_ISO_MINUTE.sub(r"\1 \2", text) for text in found)


def _plain(value: Any) -> Value:
    """Return a value in a type that Dagster's metadata accepts."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return float(value)
