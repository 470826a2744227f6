"""An engine that kills itself with a transaction open, once the file `die` is in its folder. See `takeover`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.engine import Engine
from shared.stream.step import State, Tick


def main() -> None:
    """Runs until SIGTERM, all settings as shipped. `owned.json` tells its partitions, `died` when it killed itself."""
    told = json.loads(sys.argv[1])
    folder, name, instance = Path(told["folder"]), told["name"], told["instance"]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def step(state: State, record: Record | Tick) -> Iterator[Output]:
        if isinstance(record, Record):
            state.put(record.key or b"", record.value or b"")
            yield Output.to_same_partition_as(record, f"{name}.out", instance.encode(), record.value)

    def probe(phase: str) -> None:
        """Sent, its positions too, and not committed."""
        if phase == "after_produce" and (folder / "die").exists():
            (folder / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    config = EngineConfig(
        bootstrap_servers=told["kafka"],
        application=name,
        instance=instance,
        inputs=(f"{name}.in",),
        changelog=f"{name}.changelog",
        dead_letters=f"{name}.dead",
        outputs=frozenset({f"{name}.out"}),
    )
    engine = Engine(config, step, probe=probe)
    threading.Thread(target=tell, args=(engine, folder / "owned.json"), daemon=True).start()
    engine.run(stop)


def tell(engine: Engine, path: Path) -> None:
    """The partitions it owns, ten times a second."""
    while True:
        part = path.with_suffix(".part")
        part.write_text(json.dumps([view.partition for view in engine.partitions()]))
        part.replace(path)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
