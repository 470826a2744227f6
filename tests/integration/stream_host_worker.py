"""A worker that hosts the counting engine, and a live view that fails in a chosen way. Started by its tests.

`view`: "" works; "raises" when records arrive; "unreachable" has no broker; "blocks" its thread when records arrive;
"never stops" reading.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from services.processor.api import add_live_view
from services.processor.live_view.view import LiveView, TallyReader
from shared.dead_letters import DeadLetterLimit
from shared.records import Output, Record
from shared.stream.faust_host import host_engine, run_worker
from shared.stream.step import State, Tick
from shared.telemetry import configure_logging
from tests.integration.stream_rig import Rig, counting


class FailingReader(TallyReader):
    """A reader of tallies that fails in a chosen way."""

    def __init__(self, failure: str, kafka: str, topic: str) -> None:
        self._failure = failure
        super().__init__("127.0.0.1:9" if failure == "unreachable" else kafka, topic)

    def poll(self, timeout: float) -> list[Record]:
        records = super().poll(timeout)
        if records and self._failure == "raises":
            raise RuntimeError("the reader raises")
        if records and self._failure == "blocks":
            time.sleep(0.5)
        if self._failure == "never stops":
            threading.Event().wait()
        return records


def silent(state: State, record: Record | Tick) -> list[Output]:
    """Remembers the last offset of each key, and writes nothing."""
    if isinstance(record, Record):
        state.put(record.key or b"", b"%d" % record.offset)
    return []


def main() -> None:
    told = json.loads(sys.argv[1])
    rig = Rig(told["kafka"], told["name"], told["partitions"])
    configure_logging("host")
    limit = DeadLetterLimit(window=100, min_records=50, max_count=10)
    app = host_engine(
        rig.config(told["instance"], dead_letter_limit=limit),
        silent if told.get("step") == "silent" else counting(rig.out),
        host="127.0.0.1",
        port=told["port"],
        data_dir=Path(told["folder"]),
        store_cache_mb=8,
    )
    if "view" in told:
        topic = f"{rig.name}.tallies"
        add_live_view(app, LiveView(app.engine, lambda: FailingReader(told["view"], rig.kafka, topic)))
    run_worker(app, "ERROR")


if __name__ == "__main__":
    main()
