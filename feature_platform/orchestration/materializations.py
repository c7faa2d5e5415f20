"""The materialisations that sensors report for a table: complete past days, then newer rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import dagster as dg

from feature_platform.orchestration.partitions import days, has_partition, partition_key
from feature_platform.settings import get_settings

# The most past days of a table that a tick reports: years of imported history are reported month
# by month.
MOST_DAYS = 31


def whole_days(
    name: str, done: set[str], find: Callable[[list[datetime]], Iterable[tuple[datetime]]]
) -> Iterator[dg.AssetMaterialization]:
    """Yield materialisations of past days in which no minute is missing and no row waits.

    done: the partitions with a materialisation; the new ones are added.
    find: returns the complete ones of some days.
    """
    past = [key for key in days.get_partition_keys()[:-1] if key not in done]
    found = find([datetime.fromisoformat(f"{key}T00Z") for key in past])
    for (day,) in islice(found, MOST_DAYS):
        key = partition_key(day.astimezone(UTC))
        done.add(key)
        yield dg.AssetMaterialization(
            name,
            partition=key,
            description="Every minute of the day is accounted for, and no row waits for a refresh.",
        )


def newer_rows(
    name: str,
    newest: datetime | None,
    done: set[str],
    reported: dict[str, str],
    state: Callable[[datetime], Mapping[str, Any]],
) -> Iterator[dg.AssetMaterialization]:
    """Yield a materialisation of a table if its newest closed bucket advanced.

    It has the partition of the day only if that day has no materialisation yet: a later one would
    hide the plot and the counts of a run. The freshness policy looks at the asset's newest
    materialisation, with or without a partition.

    reported: the newest bucket of each table that was reported, in ISO-8601; it is updated.
    state: returns the metadata for a newest bucket.
    """
    if newest is None:
        return
    bucket = newest.astimezone(UTC)
    text, last = bucket.isoformat(), reported.get(name, "")
    # If a reported bucket has not begun yet, the clock was set back.
    if last < text or last > get_settings().clock.now().isoformat():
        reported[name] = text
        key = partition_key(bucket)
        yield dg.AssetMaterialization(
            name,
            partition=key if has_partition(bucket) and key not in done else None,
            description=f"Newer rows, up to {text}.",
            metadata=state(bucket),
        )
