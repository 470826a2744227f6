"""Worker that hosts an engine with the counting step, and a live view that fails in a chosen way. Started by tests.

The argument is JSON. `view` chooses the failure of the reader: "" (none), "raises" (when records arrive), "unreachable"
(it has no broker), "blocks" (its thread, when records arrive), or "never stops" (reading).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from services.processor.api import add_live_view
from services.processor.live_view.view import LiveView, TallyReader
from shared.adapters.access import Access
from shared.dead_letters import DeadLetterLimit
from shared.kafka_connection import KafkaConnection
from shared.records import Output, Record
from shared.stream.faust_host import host_engine, run_worker
from shared.stream.step import State, Tick
from shared.telemetry import configure_logging
from tests.integration.stream_rig import Rig, counting_step


class FailingReader(TallyReader):
    """A reader of tallies that fails in a chosen way."""

    def __init__(self, failure: str, kafka: str, topic: str) -> None:
        self._failure = failure
        super().__init__(KafkaConnection("127.0.0.1:9" if failure == "unreachable" else kafka), topic)

    def poll(self, timeout: float) -> list[Record]:
        records = super().poll(timeout)
        if records and self._failure == "raises":
            raise RuntimeError("the reader raises")
        if records and self._failure == "blocks":
            time.sleep(0.5)
        if self._failure == "never stops":
            threading.Event().wait()
        return records


def silent_step(state: State, record: Record | Tick) -> list[Output]:
    """Store the last offset of each key, and write no output."""
    if isinstance(record, Record):
        state.put(record.key or b"", b"%d" % record.offset)
    return []


def main() -> None:
    settings = json.loads(sys.argv[1])
    rig = Rig(settings["kafka"], settings["name"], settings["partitions"])
    configure_logging("host")
    limit = DeadLetterLimit(window=100, max_count=10)
    changes = {"require_append_time": settings.get("require_append_time", True)}
    app = host_engine(
        rig.config(
            settings["instance"], identity=settings.get("identity", ""), dead_letter_limit=limit, **changes
        ),
        silent_step if settings.get("step") == "silent" else counting_step(rig.out),
        access=Access(),
        host="127.0.0.1",
        port=settings["port"],
        data_dir=Path(settings["folder"]),
        store_cache_mb=8,
    )
    if "view" in settings:
        topic = f"{rig.name}.tallies"
        add_live_view(app, LiveView(app.engine, lambda: FailingReader(settings["view"], rig.kafka, topic)))
    run_worker(app, "ERROR")


if __name__ == "__main__":
    main()
