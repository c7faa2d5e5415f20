"""Guards against marks that the worker misses, in any order of transactions."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from feature_platform._mark_watch import MarkWatch


@dataclass
class Log:
    """A dirty log, its sequence, and its running transactions.

    marks: the transaction of each mark.
    """

    last: int = 0
    next_xid: int = 1
    marks: dict[int, int] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)

    def begin(self) -> None:
        self.running.add(self.next_xid)
        self.next_xid += 1

    def mark(self, xid: int) -> None:
        self.last += 1
        self.marks[self.last] = xid

    def visible(self) -> set[int]:
        return {mark for mark, xid in self.marks.items() if xid not in self.running}


Step = tuple[str, int]
STEPS = st.tuples(st.sampled_from(["begin", "mark", "end"]), st.integers(0, 9))
LOOKS = st.lists(st.tuples(st.lists(STEPS, max_size=4), st.lists(STEPS, max_size=4)))


@given(LOOKS)
def test_each_committed_mark_is_seen_by_the_next_look(
    looks: list[tuple[list[Step], list[Step]]],
) -> None:
    log, watch = Log(), MarkWatch()
    seen: set[int] = set()

    def take(step: str, which: int) -> None:
        chosen = sorted(log.running)[which % len(log.running)] if log.running else None
        if step == "begin":
            log.begin()
        elif chosen is not None and step == "mark":
            log.mark(chosen)
        elif chosen is not None and step == "end":
            log.running.remove(chosen)

    for steps_before, steps_within in [*looks, ([], [])]:
        for step in steps_before:
            take(*step)
        snapshot, committed = set(log.running), log.visible()
        for step in steps_within:  # other transactions, until the sequence is read
            take(*step)
        after = watch.look(log.last, snapshot)
        if after is not None:
            seen.update(mark for mark in committed if mark > after)
        assert committed <= seen


def test_a_quiet_log_is_not_read() -> None:
    watch = MarkWatch()
    assert [watch.look(mark, {7}) for mark in (5, 5, 5, 5)] == [0, 0, None, None]
    assert watch.look(5, {8}) == 0  # transaction 7, older than the first look, has ended
    assert watch.look(5, {8}) is None
    assert watch.look(5, {9}) is None  # transaction 8 began after the sequence had this value


def test_a_long_transaction_costs_one_long_read() -> None:
    watch = MarkWatch()
    watch.look(100, {1})
    after = [watch.look(mark, {1, mark}) for mark in range(101, 150)]
    assert after[3:] == [mark - 3 for mark in range(104, 150)]
    assert watch.look(150, set()) == 0
    assert watch.look(151, set()) == 149
