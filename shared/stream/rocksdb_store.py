"""State of a partition in a RocksDB folder, so that the next start reads only the rest of the changelog.

The store is a copy of the changelog: it may lose recent writes, but it must never be inconsistent. The changelog
position is a key next to the contents, written in the same batch. There is no write-ahead log: batches reach the disk
when a buffer is full, once a minute, and on closing, always as a complete prefix of all batches. After a kill the
folder holds the state and position from at most a minute (or one buffer) earlier, and the restore reads the rest.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from shared.stream.malloc_tuning import limit_arenas, trim_heap
from shared.stream.state_store import DEFAULT_CACHE_MB, ENGINE_KEY_PREFIX, StoreFailed

log = structlog.get_logger(__name__)

CHANGELOG_POSITION_KEY = ENGINE_KEY_PREFIX + b"store.position"
MIN_BUFFER_BYTES = 16 << 20
"""Least memory for the write buffers of all partitions together."""
MIN_BUFFER_BYTES_PER_PARTITION = 512 << 10
"""Least memory for the write buffers, times the number of partitions: each store needs a buffer of its own."""
BUFFER_SHARES = 4
"""Parts of an equal share of the memory that the buffer of one busy partition may fill."""
ARENA_BLOCK_BYTES = 64 << 10
"""Step in which a write buffer takes memory. RocksDB's default is up to 1 MiB, which many stores cannot afford."""
MEMTABLE_BLOOM_RATIO = 0.02
"""Size of a write buffer's Bloom filter relative to the buffer: about ten bits per key of a hundred bytes."""
FLUSH_INTERVAL_S = 60.0
REMOVE_UNUSED_AFTER_S = 86_400.0
"""A store that was not opened for this long is removed. It would be rebuilt anyway, and may hold erased content."""
COMPACTION_PERIOD_S = 86_400
"""Every file is rewritten within this time, so that deleted content leaves the disk too."""
_IN_USE = ("lock hold by", "While lock file")
_NOT_DAMAGED = (
    "No space left", "Permission denied", "Read-only file system", "Too many open files", "File too large",
    "Disk quota exceeded", "Cannot allocate memory", "No locks available",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Block cache and write buffers that all stores of a process share."""

    cache: Cache
    buffers: WriteBufferManager
    buffer_bytes: int
    """All write buffers together, before flushing starts."""
    store_buffer_bytes: int
    """The write buffer of one store, before it is flushed."""


class RocksDBStoreFactory:
    """`OpenStore` that keeps each partition in a folder of its own below `folder`.

    Memory of all partitions together: `cache_mb` of blocks that were read; write buffers of 16 MiB, a quarter of
    `cache_mb` or 0.5 MiB per partition, whichever is largest, and as much again during a flush; indexes and filters of
    about 3 bytes per key. In addition, each partition takes about 2 MiB for file handles and compaction.
    """

    def __init__(
        self,
        folder: Path,
        cache_mb: int = DEFAULT_CACHE_MB,
        flush_s: float = FLUSH_INTERVAL_S,
        *,
        partitions: int = 1,
    ) -> None:
        """Prepare the shared memory; the disk is not touched before a store is opened.

        Args:
            folder: Parent of the stores' folders.
            cache_mb: Size of the shared block cache in MiB.
            flush_s: Flush interval in seconds: how far a kill can set a store back.
            partitions: Number of partitions that this process may own, at most all of the deployment. Together, their
                empty write buffers must stay far below the shared limit: above it, RocksDB flushes a store at every
                write, which made writing 100 times slower with 24 partitions.

        """
        self.folder = folder
        self._flush_s = flush_s
        self._opened: dict[int, RocksDBStore] = {}
        self._next_clean_up = 0.0
        limit_arenas()
        # Small buffers make many small files, which RocksDB then merges all the time and every read has to search.
        buffers = max(MIN_BUFFER_BYTES, (cache_mb << 20) // 4, partitions * MIN_BUFFER_BYTES_PER_PARTITION)
        # The library requires a cache to charge the buffers to, so this one serves no other purpose.
        manager = WriteBufferManager.new_write_buffer_manager_with_cache(buffers, False, Cache(2 * buffers))
        each = min(buffers, buffers * BUFFER_SHARES // partitions)
        self._budget = MemoryBudget(Cache(cache_mb << 20), manager, buffers, each)

    def __call__(self, partition: int) -> RocksDBStore:
        """Open the store of a partition. Raises `StoreFailed`."""
        store = RocksDBStore(self.folder / str(partition), self._budget, self._flush_s, self._clean_up)
        self._opened[partition] = store
        return store

    def _clean_up(self) -> None:
        """Remove unused stores and return free memory, at most once per flush interval of all stores together."""
        if time.monotonic() >= self._next_clean_up:
            self._next_clean_up = time.monotonic() + self._flush_s
            self._remove_unused()
            trim_heap()

    def _remove_unused(self) -> None:
        """Remove stores of partitions that other processes took over."""
        opened = {str(number) for number, store in self._opened.items() if not store.closed}
        try:
            for folder in self.folder.iterdir():
                unused = folder.name.isdecimal() and folder.name not in opened
                if unused and folder.stat().st_mtime < time.time() - REMOVE_UNUSED_AFTER_S:
                    log.info("store removed, because it was not used for a day", folder=str(folder))
                    _remove(folder)
        except (OSError, StoreFailed) as error:
            log.warning("cannot remove unused stores", folder=str(self.folder), error=str(error))


class RocksDBStore:
    """`StateStore` in one folder, which is created if missing. A damaged store is removed and opened empty."""

    def __init__(
        self,
        folder: Path,
        budget: MemoryBudget,
        flush_s: float = FLUSH_INTERVAL_S,
        on_flush: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the store. Raises `StoreFailed` if that fails for another reason than damage."""
        self._folder = folder
        self._budget = budget
        self._flush_s = flush_s
        self._on_flush = on_flush
        self._damaged = False
        self.closed = False
        self._db: Rdict
        self._position: int | None = None
        self._next_flush = 0.0
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[method-assign, assignment] # a property, unlike its stub
        try:
            self._open()
        except StoreFailed:
            if not self._damaged:
                raise
            self._damaged = False
            _remove(folder)
            self._open()

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._to_raise("read", error) from error
        return value

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Return the value of each key."""
        try:
            values: list[bytes | None] = self._db.get(cast(list[Any], keys))  # type: ignore[assignment] # a list for a list
        except Exception as error:
            raise self._to_raise("read", error) from error
        return values

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs in a key range."""
        if start >= end:
            return
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(end)
        try:
            # Not `items()`: at a damaged block it would end without an error.
            cursor = self._db.iter(bounds)
            cursor.seek(start)
            while cursor.valid():
                key = cursor.key()
                if key != CHANGELOG_POSITION_KEY:
                    yield key, cursor.value()
                cursor.next()
            cursor.status()
        except Exception as error:
            raise self._to_raise("read", error) from error

    def apply(self, writes: Mapping[bytes, bytes | None], position: int) -> None:
        """Write values and position in one batch."""
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in writes.items():
            if value is None:
                delete(key)
            else:
                put(key, value)
        put(CHANGELOG_POSITION_KEY, b"%d" % position)
        try:
            self._db.write(batch, self._unlogged)
            self._position = position
            if self._budget.buffers.get_usage() > 2 * self._budget.buffer_bytes:
                self._db.flush()  # the disk cannot keep up, so wait for it
            if time.monotonic() >= self._next_flush:
                self._next_flush = time.monotonic() + self._flush_s
                self._db.flush(wait=False)
                self._on_flush()
        except Exception as error:
            raise self._to_raise("written", error) from error

    def changelog_position(self) -> int | None:
        """Return the next changelog offset to read."""
        return self._position

    def key_count(self) -> int:
        """Return RocksDB's estimate: a key that was overwritten counts twice until compaction."""
        keys = self._db.property_int_value("rocksdb.estimate-num-keys") or 0
        return max(0, keys - (self._position is not None))

    def size_bytes(self) -> int | None:
        """Return the size of the files and write buffers, in bytes."""
        properties = ("rocksdb.live-sst-files-size", "rocksdb.size-all-mem-tables")
        return sum(self._db.property_int_value(name) or 0 for name in properties)

    def close(self) -> None:
        """Flush and close the store; remove it if it is damaged."""
        if self.closed:
            return
        self.closed = True
        for action in (self._db.close,) if self._damaged else (self._db.flush, self._db.close):
            try:
                action()
            except Exception as error:  # noqa: BLE001 - the changelog still has everything
                log.warning("cannot close the store cleanly", folder=str(self._folder), error=str(error))
        if self._damaged:
            self._remove_damaged()

    def wipe(self) -> None:
        """Remove the folder and open an empty store in its place."""
        try:
            self._db.close()
        except Exception as error:
            raise self._to_raise("wiped", error) from error
        _remove(self._folder)
        self._open()

    def _remove_damaged(self) -> None:
        try:
            _remove(self._folder)
        except StoreFailed as error:
            log.warning("cannot remove the damaged store", folder=str(self._folder), error=str(error))

    def _open(self) -> None:
        db: Rdict | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            db = Rdict(str(self._folder), _options(self._budget))
            # The library does not allow this option before opening.
            db.set_options({"periodic_compaction_seconds": str(COMPACTION_PERIOD_S)})
            position = db.get(CHANGELOG_POSITION_KEY)
            self._position = None if position is None else int(position)
        except Exception as error:
            if db is not None:
                db.close()
            if not any(sign in str(error) for sign in (*_IN_USE, *_NOT_DAMAGED)):
                self._mark_damaged(error)
            raise StoreFailed(self._message("opened", error)) from error
        self._db = db
        self._next_flush = time.monotonic() + self._flush_s

    def _to_raise(self, action: str, error: Exception) -> Exception:
        """Return the exception to raise for an error of the library, whose own errors are plain `Exception`s.

        Other classes are mistakes of the caller and stay as they are.
        """
        if type(error) is not Exception:
            return error
        if "Corruption" in str(error):
            self._mark_damaged(error)
        return StoreFailed(self._message(action, error))

    def _mark_damaged(self, error: Exception) -> None:
        if not self._damaged:
            log.warning(
                "store damaged; it is removed and rebuilt from the changelog",
                folder=str(self._folder),
                error=str(error),
            )
        self._damaged = True

    def _message(self, action: str, error: Exception) -> str:
        text = f"the store {self._folder} could not be {action}: {error}."
        if any(sign in str(error) for sign in _IN_USE):
            return f"{text} Another process has it open: run only one process under each instance name."
        return text


def _options(budget: MemoryBudget) -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(budget.cache)
    table.set_bloom_filter(10, False)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_manager(budget.buffers)
    options.set_write_buffer_size(budget.store_buffer_bytes)
    options.set_arena_block_size(ARENA_BLOCK_BYTES)
    options.set_max_write_buffer_number(2)
    # Compression took a fifth of the time when the state was larger than the cache.
    options.set_compression_type(DBCompressionType.none())
    # The filter saves looking for absent keys in the write buffers.
    options.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_RATIO)
    options.set_memtable_whole_key_filtering(True)
    options.set_max_open_files(128)
    options.set_max_log_file_size(1 << 20)
    options.set_keep_log_file_num(2)
    options.set_stats_dump_period_sec(0)
    return options


def _remove(folder: Path) -> None:
    """Remove a folder, or a file in its place. Raises `StoreFailed`."""
    try:
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)
    except OSError as error:
        raise StoreFailed(f"the store {folder} could not be removed: {error}.") from error
