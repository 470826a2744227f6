"""A process of the counting engine, made to be killed: `python -m tests.fault.stream_worker '{...}'`.

It ends by itself once all its inputs are drained. `kill`: [phase, n] kills it, as SIGKILL would, the n-th time
it comes to that phase. `folder`: where its stores lie; without it they are in memory. `variant` names an engine that
is broken on purpose.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from shared.stream.engine import Engine
from shared.stream.rocks import RocksStores
from shared.stream.store import MemoryStore
from tests.fault.broken_engines import PositionsFirst
from tests.fault.stream_rig import Rig, counting

VARIANTS: dict[str, type[Engine]] = {"": Engine, "positions first": PositionsFirst}


def main() -> None:
    told = json.loads(sys.argv[1])
    rig = Rig(told["kafka"], told["name"], told["partitions"])
    phase, left = told.get("kill") or ("", 0)

    def probe(now: str) -> None:
        nonlocal left
        if now == phase:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    config = rig.config(
        told["instance"], session_timeout=2.0, transaction_timeout=1.5, slice_records=told["slice_records"]
    )
    engine = VARIANTS[told.get("variant", "")](
        config,
        counting(rig.out),
        open_store=RocksStores(Path(told["folder"]), cache_mb=8, flush_s=0.05)
        if "folder" in told
        else MemoryStore,
        probe=probe,
    )
    stop = threading.Event()
    watch = threading.Thread(target=stop_when_drained, args=(engine, stop), daemon=True)
    watch.start()
    engine.run(stop)


def stop_when_drained(engine: Engine, stop: threading.Event) -> None:
    quiet = 0
    while not stop.wait(0.1):
        views = engine.partitions()
        known = all(len(view.lag) == len(engine.config.inputs) for view in views)
        done = engine.ready and known and not any(sum(view.lag.values()) for view in views)
        quiet = quiet + 1 if done else 0
        if quiet >= 10:
            stop.set()


if __name__ == "__main__":
    main()
