"""Poll the validation queries of users on a live database, as `watch` of psql does.

    python -m benchmarks.validation_poll --seconds 600

queries the configured database (by default the embedded one of `make dev`) every second. From the
third second of a minute each symbol must have nine rows of the last ten minutes, and the newest
three rows must have no NULL after the first day of their symbol. Otherwise the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.harness import Connection, queries
from feature_platform.database import connect

LATE_IN_MINUTE = 2.0  # seconds; before them, the row of the last minute may not be stored yet
LEAST_ROWS = 9


@dataclass
class Polled:
    """The result of a poll. findings: wrong rows and counts, with their time."""

    polls: int = 0
    fewest_rows: int | None = None
    slowest: float = 0.0
    findings: list[str] = field(default_factory=list)


def poll(connection: Connection, seconds: float, every: float = 1.0) -> Polled:
    """Poll for some seconds, at least once."""
    found = Polled()
    until = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        _look(connection, found)
        found.slowest = max(found.slowest, time.monotonic() - began)
        if time.monotonic() + every > until:
            return found
        time.sleep(max(0.0, began + every - time.monotonic()))


def _look(connection: Connection, found: Polled) -> None:
    found.polls += 1
    rows = connection.execute(queries["poll_rows_of_symbols"]).fetchall()
    for at, second, symbol, count in rows:
        if second <= LATE_IN_MINUTE:
            continue
        found.fewest_rows = count if found.fewest_rows is None else min(found.fewest_rows, count)
        if count < LEAST_ROWS:
            found.findings.append(f"{at}: {symbol} has {count} rows of the last ten minutes")
    if not rows:
        found.findings.append("there are no features of the last hour")
    for at, symbol, bucket in connection.execute(queries["poll_nulls"]).fetchall():
        found.findings.append(f"{at}: the row of {symbol} at {bucket} has a NULL")


def main(arguments: Sequence[str] | None = None) -> int:
    """Poll, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.validation_poll",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    with connect() as connection:
        found = poll(connection, options.seconds)
    print(
        f"{found.polls} polls, the slowest {1000 * found.slowest:.1f} ms; fewest rows of a symbol"
        f" in ten minutes, later than {LATE_IN_MINUTE:g} s into a minute: {found.fewest_rows};"
        f" {len(found.findings)} findings"
    )
    for finding in found.findings[:20]:
        print(f"  {finding}")
    return 1 if found.findings else 0


if __name__ == "__main__":
    sys.exit(main())
