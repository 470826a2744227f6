"""A process that writes batches into a store, to be killed: `python -m tests.unit.rocks_writer FOLDER ["full disk"]`.

Batch n has position n + 1. What the store holds at a position follows from the position alone.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from shared.stream.rocksdb_store import RocksDBStore, RocksDBStoreFactory
from shared.stream.state_store import StoreFailed

KEYS = 2_000
ROOM = 32 << 10


def batch(n: int) -> dict[bytes, bytes | None]:
    """Fifty writes in an order of their own, every seventh a deletion."""
    found: dict[bytes, bytes | None] = {}
    for m in range(50):
        at = n * 50 + m
        key = b"%05d" % (at * 7_919 % KEYS)
        found[key] = None if at % 7 == 0 else b"%d:" % n + key * 20
    return found


def contents(position: int) -> dict[bytes, bytes]:
    """Of a store at `position`."""
    found: dict[bytes, bytes] = {}
    for n in range(position):
        for key, value in batch(n).items():
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
    return found


def write_for_ever(store: RocksDBStore) -> None:
    n = store.changelog_position() or 0
    while True:
        store.apply(batch(n), n + 1)
        print(n, flush=True)
        n += 1


def fill_the_disk(stores: RocksDBStoreFactory, store: RocksDBStore) -> dict[str, object]:
    store.apply(batch(0), 1)
    store.close()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, limits[1]))
    failed, n = "", 1
    try:
        store = stores(0)
        while n < 10_000:
            store.apply(batch(n), n + 1)
            n += 1
    except StoreFailed as error:
        failed = str(error)
    store.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store = stores(0)
    position = store.changelog_position()
    store.close()
    return {"failed": failed, "position": position, "damaged": position is None}


def main() -> None:
    stores = RocksDBStoreFactory(Path(sys.argv[1]), cache_mb=8, flush_s=0.02)
    store = stores(0)
    if sys.argv[2:] == ["full disk"]:
        sys.stdout.write(json.dumps(fill_the_disk(stores, store)))
    else:
        write_for_ever(store)


if __name__ == "__main__":
    main()
