"""Size of the next slice after aborts: bisects down to the record that causes them. Pure."""

from __future__ import annotations

ABORTS_BEFORE_HALVING = 3

RecordId = tuple[str, int, int]
"""(topic, partition, offset)"""


class SliceSize:
    """Size of the next slice: halved after three aborts in a row at the same first record, doubled after a commit.

    When a slice of one record keeps aborting, that record is given up, but only for aborts that a record caused. Other
    aborts (the broker is unreachable, the group rebalances) halve the slice too, because it may have been too large for
    the transaction timeout, but they never give up a record.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._records = largest
        self._first: RecordId | None = None
        self._aborts = 0
        self._aborts_by_record = 0

    @property
    def records(self) -> int:
        """Most records that the next slice may have."""
        return self._records

    @property
    def aborts(self) -> int:
        """Aborts in a row with the same first record at this size. The engine waits longer with each."""
        return self._aborts

    def aborted(self, first: RecordId, *, caused_by_record: bool) -> bool:
        """Count an abort of the slice that began with `first`. Returns whether to give that one record up.

        After that, its dead letter takes its place. Returns True again only after as many further aborts that a record
        caused.
        """
        if first != self._first:
            self._first, self._aborts, self._aborts_by_record = first, 0, 0
        self._aborts += 1
        self._aborts_by_record += caused_by_record
        if self._aborts < ABORTS_BEFORE_HALVING:
            return False
        if self._records > 1:
            self._records = max(1, self._records // 2)
            self._aborts, self._aborts_by_record = 0, 0
            return False
        if self._aborts_by_record < ABORTS_BEFORE_HALVING:
            return False
        self._aborts, self._aborts_by_record = 0, 0
        return True

    def committed(self) -> None:
        """Count a commit: the next slice may be twice as large, up to the configured size."""
        self._records = min(self._largest, self._records * 2)
        self._first, self._aborts, self._aborts_by_record = None, 0, 0
