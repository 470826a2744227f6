"""The one-stage job on the stream engine, with state in RocksDB and default settings."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import orjson

from benchmarks.processor.job import Job, read_job
from benchmarks.processor.votes import vote
from shared.errors import Malformed
from shared.kafka_connection import KafkaConnection
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.engine import Engine
from shared.stream.rocksdb_store import RocksDBStoreFactory
from shared.stream.step import State, Tick

STATUS = "status.json"
POLL_INTERVAL_S = 0.05


class VotesStep:
    """Step that writes one output and one state, so one changelog record, for each input."""

    def __init__(self, job: Job) -> None:
        self._output = job.output
        self._remembered = job.remembered_events

    def prefetch_keys(self, record: Record) -> Iterable[bytes]:
        """Return the record's key, which is all that the step reads."""
        return (record.key or b"",)

    def __call__(self, state: State, record: Record | Tick) -> Iterable[Output]:
        """Process one event; ignore ticks."""
        if isinstance(record, Tick):
            return ()
        key = record.key or b""
        try:
            event = orjson.loads(record.value or b"")
        except ValueError as error:
            raise Malformed(str(error)) from error
        before = state.get(key)
        after, output = vote(None if before is None else orjson.loads(before), event, self._remembered)
        state.put(key, orjson.dumps(after))
        return (Output.to_same_partition_as(record, self._output, key, orjson.dumps(output)),)


def main() -> None:
    """Run until SIGTERM, and keep `status.json` in the job's folder up to date."""
    job, stop, ended = read_job(), threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    config = EngineConfig(
        kafka=KafkaConnection(job.kafka),
        application=job.name,
        instance=job.instance,
        inputs=(job.input,),
        changelog=job.changelog,
        dead_letters=job.dead_letters,
        outputs=frozenset({job.output}),
        partitions=job.partitions,
    )
    folder = Path(job.folder)
    engine = Engine(
        config,
        VotesStep(job),
        open_store=RocksDBStoreFactory(folder / "state", job.cache_mb, partitions=job.partitions),
    )
    status_writer = threading.Thread(target=write_status, args=(engine, folder / STATUS, ended), daemon=True)
    status_writer.start()
    try:
        engine.run(stop)
    finally:
        ended.set()
        status_writer.join()


def write_status(engine: Engine, path: Path, ended: threading.Event) -> None:
    """Write each change of the engine's state and owned partitions, with its time in seconds since the epoch."""
    before: tuple[str, list[int]] | None = None
    while not ended.wait(POLL_INTERVAL_S):
        now = (engine.state, sorted(status.partition for status in engine.partitions()))
        if now != before:
            before = now
            part = path.with_suffix(".part")
            part.write_text(json.dumps({"state": now[0], "partitions": now[1], "at": time.time()}))
            part.replace(path)


if __name__ == "__main__":
    main()
