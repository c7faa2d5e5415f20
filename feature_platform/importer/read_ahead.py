"""Compute the next item of a generator while the caller uses the present one."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """Yield the items of a generator; another thread computes them one step ahead.

    Exceptions of the generator are raised here. When this generator is closed, it waits for the
    item that is being computed, and closes the other generator.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(next, items, end)
        try:
            while (item := coming.result()) is not end:
                coming = pool.submit(next, items, end)
                yield item  # type: ignore[misc]  # mypy cannot exclude the type of `end`
        finally:
            pool.submit(items.close).result()
