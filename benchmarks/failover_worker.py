"""Stream engine that kills itself in mid-transaction once its folder has a file `die`. See `failover.py`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from shared.kafka_connection import KafkaConnection
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.engine import Engine
from shared.stream.step import State, Tick


def main() -> None:
    """Run with the shipped settings until SIGTERM or the file `die`.

    The folder gets `owned.json` with the worker's partitions, and `died` with the time of the kill.
    """
    arguments = json.loads(sys.argv[1])
    folder, name, instance = Path(arguments["folder"]), arguments["name"], arguments["instance"]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record):
            state.put(record.key or b"", record.value or b"")
            yield Output.to_same_partition_as(record, f"{name}.out", instance.encode(), record.value)

    def probe(phase: str) -> None:
        """Kill this process after outputs and offsets were sent, before they are committed."""
        if phase == "after_produce" and (folder / "die").exists():
            (folder / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    config = EngineConfig(
        kafka=KafkaConnection(arguments["kafka"]),
        application=name,
        instance=instance,
        inputs=(f"{name}.in",),
        changelog=f"{name}.changelog",
        dead_letters=f"{name}.dead",
        outputs=frozenset({f"{name}.out"}),
    )
    engine = Engine(config, step, probe=probe)
    threading.Thread(target=report_partitions, args=(engine, folder / "owned.json"), daemon=True).start()
    engine.run(stop)


def report_partitions(engine: Engine, path: Path) -> None:
    """Write the engine's partitions to `path`, ten times a second."""
    while True:
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps([status.partition for status in engine.partitions()]))
        temporary.replace(path)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
