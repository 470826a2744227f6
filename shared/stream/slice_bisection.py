"""How large the next slice may be after aborts: bisecting towards the record that breaks them. Pure."""

from __future__ import annotations

ABORTS_BEFORE_HALVING = 3

RecordId = tuple[str, int, int]
"""(topic, partition, offset)"""


class SliceSize:
    """Three aborts at the same positions halve the slice; at one record, that record is given up.

    "The same positions": the same first record. Aborts that no record can be blamed for (the broker is away,
    the group rebalances) halve as well, as a slice may have been too much for the transaction's time, but
    never give a record up.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._records = largest
        self._at: RecordId | None = None
        self._aborts = 0
        self._blamed = 0

    @property
    def records(self) -> int:
        """How many records the next slice may hold."""
        return self._records

    @property
    def aborts(self) -> int:
        """How often in a row the present positions were aborted at this size: the ground for waiting longer."""
        return self._aborts

    def aborted(self, at: RecordId, *, caused_by_record: bool) -> bool:
        """A slice beginning `at` was aborted. True: give that one record up, to the dead letters.

        True again only after as many aborts that blame what then stands for it: its dead letter.
        """
        if at != self._at:
            self._at, self._aborts, self._blamed = at, 0, 0
        self._aborts += 1
        self._blamed += caused_by_record
        if self._aborts < ABORTS_BEFORE_HALVING:
            return False
        if self._records > 1:
            self._records = max(1, self._records // 2)
            self._aborts, self._blamed = 0, 0
            return False
        if self._blamed < ABORTS_BEFORE_HALVING:
            return False
        self._aborts, self._blamed = 0, 0
        return True

    def committed(self) -> None:
        """A slice went through: the next may be twice as large again."""
        self._records = min(self._largest, self._records * 2)
        self._at, self._aborts, self._blamed = None, 0, 0
