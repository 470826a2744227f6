"""A worker that hosts the counting engine, and a live view that misbehaves as told. Started by its tests.

`view`: "" works; "raises" in its agent; "sends" through Faust's producer, which fails; "unreachable" has no broker;
"blocks" the event loop of the worker; "never stops".
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from faust.transport.drivers.aiokafka import Transport
from faust.types import EventT
from yarl import URL

from services.processor.live_view.agent import LiveView
from services.processor.live_view.supervisor import LiveKeeper, attach
from shared.dead_letters import DeadLetterLimit
from shared.records import Output, Record
from shared.stream.faust_host import host_engine, run_worker
from shared.stream.step import State, Tick
from shared.telemetry import configure_logging
from tests.integration.stream_rig import Rig, counting


class Misbehaving(LiveView):
    """One life of a view that fails in a stated way."""

    def __init__(self, how: str, kafka: str, name: str) -> None:
        server = "127.0.0.1:9" if how == "unreachable" else kafka
        super().__init__(server, f"{name}-live", topic=f"{name}.tallies")
        self._how = how
        if how == "sends":
            nowhere = Transport([URL("kafka://127.0.0.1:9")], self.app)
            self.app.producer = nowhere.create_producer(beacon=self.app.beacon)
        self._topic = f"{name}.out"
        app: Any = self.app
        if how == "never stops":
            app.stop = asyncio.Event().wait

    async def _turn(self) -> None:
        if self._how == "sends":
            await self.app.topic(self._topic).send(value=b"from Faust")
        await super()._turn()

    def take(self, event: EventT[bytes]) -> None:
        if self._how == "raises":
            raise RuntimeError("the agent raises")
        if self._how == "blocks":
            time.sleep(0.5)  # the whole event loop, web views and all
        super().take(event)


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
        attach(app, LiveKeeper(app.engine, lambda: Misbehaving(told["view"], rig.kafka, rig.name)))
    run_worker(app, "ERROR")


if __name__ == "__main__":
    main()
