"""A process that writes batches to a store until it is killed.

Run `python -m tests.unit.rocksdb_writer FOLDER ["full disk"]`. Batch n ends at position n + 1, and the contents of the
store depend only on its position.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from shared.stream.rocksdb_store import RocksDBStore, RocksDBStoreFactory
from shared.stream.state_store import StoreFailed

KEYS = 2_000
FILE_LIMIT = 32 << 10


def batch(n: int) -> dict[bytes, bytes | None]:
    """Return fifty writes in a fixed shuffled order; every seventh is a deletion."""
    writes: dict[bytes, bytes | None] = {}
    for m in range(50):
        at = n * 50 + m
        key = b"%05d" % (at * 7_919 % KEYS)
        writes[key] = None if at % 7 == 0 else b"%d:" % n + key * 20
    return writes


def contents(position: int) -> dict[bytes, bytes]:
    """Return the contents of a store at `position`."""
    state: dict[bytes, bytes] = {}
    for n in range(position):
        for key, value in batch(n).items():
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
    return state


def write_forever(store: RocksDBStore) -> None:
    n = store.changelog_position() or 0
    while True:
        store.apply(batch(n), n + 1)
        print(n, flush=True)
        n += 1


def fill_disk(stores: RocksDBStoreFactory, store: RocksDBStore) -> dict[str, object]:
    """Write until the file size limit is hit, and report the error and the position of the reopened store."""
    store.apply(batch(0), 1)
    store.close()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, limits[1]))
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
        sys.stdout.write(json.dumps(fill_disk(stores, store)))
    else:
        write_forever(store)


if __name__ == "__main__":
    main()
