"""New marks of the dirty log, found by its sequence and by the transactions that end."""

from __future__ import annotations

from collections.abc import Collection


class MarkWatch:
    """Find the marks that were committed since the last look, in any order of commits.

    A sequence advances before its transaction commits, so a mark may become visible long after
    greater ones. Each look therefore receives the running transactions: a transaction writes only
    marks greater than the value of the sequence two looks before the first look that saw it run.
    One look before is not enough, because the snapshot of a look is older than its sequence value.
    """

    def __init__(self) -> None:
        self._last = self._last_but_one = 0
        self._marks_before: dict[int, int] = {}

    def look(self, mark: int, running: Collection[int]) -> int | None:
        """Return the mark before all new ones, None when there are no new marks.

        mark: the sequence's value, read under the snapshot of `running` or later.
        running: the ids of the transactions that were in progress.
        """
        ended = self._marks_before.keys() - running
        after = min((self._marks_before.pop(xid) for xid in ended), default=mark)
        after = min(after, self._last_but_one)
        for xid in running:
            self._marks_before.setdefault(xid, self._last_but_one)
        self._last, self._last_but_one = mark, self._last
        return after if after < mark else None
