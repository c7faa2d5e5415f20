"""Guards against items that the reading thread loses, reorders, or leaves open."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing

import pytest

from feature_platform.importer.read_ahead import read_ahead


def test_items_are_read_in_order_by_another_thread() -> None:
    def items() -> Generator[tuple[int, int], None, None]:
        for number in range(5):
            yield number, threading.get_ident()

    found = list(read_ahead(items()))
    assert [number for number, _ in found] == list(range(5))
    assert threading.get_ident() not in {thread for _, thread in found}


def test_the_next_item_is_computed_while_one_is_in_use() -> None:
    second = threading.Event()

    def items() -> Generator[int, None, None]:
        yield 1
        second.set()
        yield 2

    for item in read_ahead(items()):
        if item == 1:
            assert second.wait(60)


def test_an_error_of_the_thread_is_raised_to_the_reader() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise ValueError("there")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="there"):
        next(ahead)


def test_closing_the_reader_closes_its_source() -> None:
    closed: list[bool] = []

    def items() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    before = threading.active_count()
    with closing(read_ahead(items())) as ahead:
        next(ahead)
    assert closed == [True]
    assert threading.active_count() == before
