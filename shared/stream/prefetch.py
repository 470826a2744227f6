"""Reads what a slice will ask its stores for, the keys of one partition while another's records are processed.

A store is asked for many keys at once, in their order, and without holding up Python: half the time of asking for each,
and most of it beside the step. Only a step that says which keys it will read (`Foretelling`) gains by it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice

from shared.records import Record
from shared.stream.partition import PartitionSlice
from shared.stream.step import PrefetchingStep

MIN_RECORDS = 32
"""With fewer, handing over costs more than it saves."""
KEYS_PER_READ = 512
"""Asked for at once."""
MAX_BYTES = 16 << 20
"""What is read ahead of one partition; the rest is read when it is asked for."""

StoredValues = dict[bytes, bytes | None]


class Prefetcher:
    """One thread beside the engine's. It reads stores that nobody writes: they are written after a slice's commit."""

    def __init__(self, step: object) -> None:
        self._keys: Callable[[Record], Iterable[bytes]] | None = None
        if isinstance(step, PrefetchingStep):
            self._keys = step.prefetch_keys
            self._thread = ThreadPoolExecutor(1, "ahead")

    def prefetch(self, shares: list[PartitionSlice]) -> Generator[PartitionSlice, None, None]:
        """The shares in their order, each with what its records will read. Close it: no read outlasts it.

        What a read raises (`StoreFailed`) is raised before its share.
        """
        if self._keys is None:
            yield from shares
            return
        coming = self._begin(shares, 0)
        try:
            for place, share in enumerate(shares):
                if coming is not None:
                    share.partition.write_buffer.preload(coming.result())
                coming = self._begin(shares, place + 1)
                yield share
        finally:
            if coming is not None:
                wait([coming])

    def _begin(self, shares: list[PartitionSlice], place: int) -> Future[StoredValues] | None:
        if place == len(shares) or len(shares[place].records) < MIN_RECORDS:
            return None
        return self._thread.submit(self._read, shares[place])

    def _read(self, share: PartitionSlice) -> StoredValues:
        assert self._keys is not None
        wanted = iter(sorted({key for record in share.records for key in self._keys(record)}))
        found: StoredValues = {}
        size = 0
        while size < MAX_BYTES and (keys := list(islice(wanted, KEYS_PER_READ))):
            values = share.partition.store.get_many(keys)
            found.update(zip(keys, values, strict=True))
            size += sum(len(value) for value in values if value is not None)
        return found
