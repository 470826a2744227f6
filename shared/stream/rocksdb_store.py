"""The state of a partition in a RocksDB folder: the next start reads only what the changelog holds beyond it.

A copy of the changelog, so nothing here has to survive; but what is there must be right. The position is a key beside
the contents, written in the same batch. There is no write-ahead log: batches reach the disk when a buffer is full,
once a minute, and on closing, always a whole prefix of all batches. After a kill the folder is what it was at most
a minute (or one buffer) before, with the position of that time, and the restore reads the rest.
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
MEMTABLE_BLOOM_RATIO = 0.02
"""A buffer's filter, as a share of its size: some ten bits for each key of a hundred bytes."""
FLUSH_INTERVAL_S = 60.0
REMOVE_UNUSED_AFTER_S = 86_400.0
"""A store that nobody opened for so long is removed: it would be rebuilt anyway, and holds what was erased since."""
COMPACTION_PERIOD_S = 86_400
"""Every file is rewritten within this time, so that what was deleted leaves the disk too."""
_IN_USE = ("lock hold by", "While lock file")
_NOT_DAMAGED = (
    "No space left", "Permission denied", "Read-only file system", "Too many open files", "File too large",
    "Disk quota exceeded", "Cannot allocate memory", "No locks available",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What all stores of a process share."""

    cache: Cache
    buffers: WriteBufferManager
    buffer_bytes: int


class RocksDBStoreFactory:
    """`OpenStore` over a folder with one folder per partition.

    Memory, of all partitions together: `cache_mb` for blocks that were read; write buffers of 16 MiB or a quarter of
    that, whichever is more, and as much again while they are being flushed; indexes and filters, some 3 bytes per key.
    Beside it, per partition, some 2 MiB for file handles and compaction.
    """

    def __init__(self, folder: Path, cache_mb: int = DEFAULT_CACHE_MB, flush_s: float = FLUSH_INTERVAL_S) -> None:
        """Touches nothing until a store is opened. `flush_s`: how much a kill may set a store back, in time."""
        self.folder = folder
        self._flush_s = flush_s
        self._opened: dict[int, RocksDBStore] = {}
        self._next_tidy = 0.0
        limit_arenas()
        # Small buffers make many small files, which then have to be merged all the time: with a quarter of a small
        # cache, merging cost more than all else, and reads had to look into each of them.
        buffers = max(MIN_BUFFER_BYTES, (cache_mb << 20) // 4)
        # The library knows a manager of buffers only with a cache that they are charged to: here one for that alone.
        manager = WriteBufferManager.new_write_buffer_manager_with_cache(buffers, False, Cache(2 * buffers))
        self._memory = MemoryBudget(Cache(cache_mb << 20), manager, buffers)

    def __call__(self, partition: int) -> RocksDBStore:
        """Raises `StoreFailed`."""
        store = RocksDBStore(self.folder / str(partition), self._memory, self._flush_s, self._tidy)
        self._opened[partition] = store
        return store

    def _tidy(self) -> None:
        """Once in the time in which each store is flushed, however many there are."""
        if time.monotonic() >= self._next_tidy:
            self._next_tidy = time.monotonic() + self._flush_s
            self._remove_unused()
            trim_heap()

    def _remove_unused(self) -> None:
        """Of partitions that other processes took over."""
        opened = {str(number) for number, store in self._opened.items() if not store.closed}
        try:
            for folder in self.folder.iterdir():
                unused = folder.name.isdecimal() and folder.name not in opened
                if unused and folder.stat().st_mtime < time.time() - REMOVE_UNUSED_AFTER_S:
                    log.info("store removed: not used for a day", folder=str(folder))
                    _remove(folder)
        except (OSError, StoreFailed) as error:
            log.warning("unused stores not removed", folder=str(self.folder), error=str(error))


class RocksDBStore:
    """`Store` in a folder of its own, made if missing; a damaged one is removed, and begun anew."""

    def __init__(
        self,
        folder: Path,
        memory: MemoryBudget,
        flush_s: float = FLUSH_INTERVAL_S,
        on_flush: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises `StoreFailed` where it cannot be opened though it is not damaged."""
        self._folder = folder
        self._memory = memory
        self._flush_s = flush_s
        self._on_flush = on_flush
        self._damaged = False
        self.closed = False
        self._db: Rdict
        self._position: int | None = None
        self._next_flush = 0.0
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[method-assign, assignment] # a property, whatever its stub says
        try:
            self._open()
        except StoreFailed:
            if not self._damaged:
                raise
            self._damaged = False
            _remove(folder)
            self._open()

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._failed("read", error) from error
        return value

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        try:
            values: list[bytes | None] = self._db.get(cast(list[Any], keys))  # type: ignore[assignment] # a list for a list
        except Exception as error:
            raise self._failed("read", error) from error
        return values

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        if start >= end:
            return
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(end)
        try:
            # Not `items()`: that ends without a word where a block is damaged.
            at = self._db.iter(bounds)
            at.seek(start)
            while at.valid():
                key = at.key()
                if key != CHANGELOG_POSITION_KEY:
                    yield key, at.value()
                at.next()
            at.status()
        except Exception as error:
            raise self._failed("read", error) from error

    def apply(self, writes: Mapping[bytes, bytes | None], position: int) -> None:
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
            if self._memory.buffers.get_usage() > 2 * self._memory.buffer_bytes:
                self._db.flush()  # the disk is slower than the writer, who waits for it
            if time.monotonic() >= self._next_flush:
                self._next_flush = time.monotonic() + self._flush_s
                self._db.flush(wait=False)
                self._on_flush()
        except Exception as error:
            raise self._failed("written", error) from error

    def changelog_position(self) -> int | None:
        return self._position

    def key_count(self) -> int:
        """An estimate: keys written again count twice until they are merged on disk."""
        found = self._db.property_int_value("rocksdb.estimate-num-keys") or 0
        return max(0, found - (self._position is not None))

    def size_bytes(self) -> int | None:
        asked = ("rocksdb.live-sst-files-size", "rocksdb.size-all-mem-tables")
        return sum(self._db.property_int_value(name) or 0 for name in asked)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for step in (self._db.close,) if self._damaged else (self._db.flush, self._db.close):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the changelog has what the folder lacks
                log.warning("store not closed as it should be", folder=str(self._folder), error=str(error))
        if self._damaged:
            self._remove_damaged()

    def wipe(self) -> None:
        try:
            self._db.close()
        except Exception as error:
            raise self._failed("wiped", error) from error
        _remove(self._folder)
        self._open()

    def _remove_damaged(self) -> None:
        try:
            _remove(self._folder)
        except StoreFailed as error:
            log.warning("damaged store not removed", folder=str(self._folder), error=str(error))

    def _open(self) -> None:
        db: Rdict | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            db = Rdict(str(self._folder), _options(self._memory))
            # Not among the options that the library lets one set before opening.
            db.set_options({"periodic_compaction_seconds": str(COMPACTION_PERIOD_S)})
            position = db.get(CHANGELOG_POSITION_KEY)
            self._position = None if position is None else int(position)
        except Exception as error:
            if db is not None:
                db.close()
            if not any(sign in str(error) for sign in (*_IN_USE, *_NOT_DAMAGED)):
                self._is_damaged(error)
            raise StoreFailed(self._tell("opened", error)) from error
        self._db = db
        self._next_flush = time.monotonic() + self._flush_s

    def _failed(self, what: str, error: Exception) -> Exception:
        """What to raise. The library's own errors are plain `Exception`s; others are the caller's mistakes."""
        if type(error) is not Exception:
            return error
        if "Corruption" in str(error):
            self._is_damaged(error)
        return StoreFailed(self._tell(what, error))

    def _is_damaged(self, error: Exception) -> None:
        if not self._damaged:
            log.warning(
                "store damaged: removed, to be rebuilt from the changelog",
                folder=str(self._folder),
                error=str(error),
            )
        self._damaged = True

    def _tell(self, what: str, error: Exception) -> str:
        text = f"The store {self._folder} could not be {what}: {error}."
        if any(sign in str(error) for sign in _IN_USE):
            return f"{text} Another process has it open: run one process under each instance name."
        return text


def _options(memory: MemoryBudget) -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(memory.cache)
    table.set_bloom_filter(10, False)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_manager(memory.buffers)
    options.set_write_buffer_size(memory.buffer_bytes)
    options.set_max_write_buffer_number(2)
    # Compressing and decompressing blocks took a fifth of all time where the state is larger than the cache.
    options.set_compression_type(DBCompressionType.none())
    # A key that is in none of the buffers is not looked for in them.
    options.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_RATIO)
    options.set_memtable_whole_key_filtering(True)
    options.set_max_open_files(128)
    options.set_max_log_file_size(1 << 20)
    options.set_keep_log_file_num(2)
    options.set_stats_dump_period_sec(0)
    return options


def _remove(folder: Path) -> None:
    """Raises `StoreFailed`."""
    try:
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)
    except OSError as error:
        raise StoreFailed(f"The store {folder} could not be removed: {error}.") from error
