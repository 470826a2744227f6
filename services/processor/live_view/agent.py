"""The live view of feedback: a Faust application with an agent and a table over `feedback.tallies`, for `/tallies`.

It runs in the engine's worker, as an application of its own: what fails in it ends it alone, and it begins anew. It
only reads, and waits while the engine has a backlog (`docs/decisions/live-view.md`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Counts
from typing import Any

import faust
import structlog
from faust.app.base import BootStrategy
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer
from faust.types import EventT, StreamT
from mode.threads import ServiceThread, WorkerThread

from services.processor.live_view.sums import MOST_KEYS, Entry, Sums, entry_of
from shared.errors import Rejected
from shared.topics import FEEDBACK_TALLIES

log = structlog.get_logger(__name__)

RECORDS_PER_S = 2_000
"""The most it reads: Faust needs some 0.17 ms of a core for each."""
PIECE = 50


class TallyTable(faust.Table[bytes, Entry]):
    """A table whose log is the topic it is made from: nothing is logged, and each start reads the topic again.

    A changelog of Faust's own would keep what users said in a place where a lost send (which Faust only logs) could
    keep it for ever.
    """

    def on_key_set(self, key: Any, value: Any) -> None:
        self._sensor_on_set(self, key, value)

    def on_key_del(self, key: Any) -> None:
        self._sensor_on_del(self, key)


class LiveView:
    """One life of the Faust application: from its start until it fails or is told to stop."""

    def __init__(
        self,
        bootstrap_servers: str,
        group: str,
        *,
        topic: str = FEEDBACK_TALLIES.name,
        most_keys: int = MOST_KEYS,
        records_per_s: int = RECORDS_PER_S,
    ) -> None:
        """Connects to nothing yet. `group`: its own; it commits nothing under it."""
        self._most_keys = most_keys
        self._pace = PIECE / records_per_s
        self._next_piece = 0.0
        self._in_piece = 0
        self._in_hand = False
        self._taken: dict[Any, int] = {}
        self._read_before: int | None = None
        self.may_read = asyncio.Event()
        """Cleared, it reads no further."""
        self.may_read.set()
        self.failure: BaseException | None = None
        """Why its agent ended."""
        self.counted: Counts[str] = Counts()
        """`read`, and among them `unreadable` and `left_out` (new keys beyond the most that it holds)."""
        self.behind: int | None = None
        """Records of the topic that it has yet to read; None until known."""
        self.sums = Sums()
        self.app = _application(bootstrap_servers, group)
        self.table = TallyTable(self.app, name="tallies", store="memory://", key_type=bytes)
        source = self.app.topic(
            topic,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            allow_empty=True,
            # Nothing is acknowledged, so nothing is committed: each start reads from the beginning.
            acks=False,
        )
        self.app.agent(source, name="tallies")(self._follow)

    async def _follow(self, stream: StreamT[bytes]) -> None:
        try:
            async for event in stream.events():
                self._in_hand = True
                await self._turn()
                self.take(event)
                self._taken[event.message.tp] = event.message.offset + 1
                self._in_hand = False
        except Exception as error:
            # Faust would acknowledge the record and go on behind it: a deletion might be missed.
            self.failure = error
            raise

    def take(self, event: EventT[bytes]) -> None:
        """The newest tally of a key replaces the one before; a deletion, as erasure writes it, takes it away."""
        self.counted["read"] += 1
        key, value = event.key, event.value
        if not isinstance(key, bytes):
            self.counted["unreadable"] += 1
            return
        before: Entry | None = self.table.get(key)
        after: Entry | None = None
        if value:
            try:
                after = entry_of(value)
            except Rejected:
                self.counted["unreadable"] += 1
                return
            if before is None and len(self.table) >= self._most_keys:
                self.counted["left_out"] += 1
                return
        self.sums.moved(before, after)
        if after is not None:
            self.table[key] = after
        elif before is not None:
            del self.table[key]

    async def measure(self) -> None:
        """Asks the consumer how far it is. Called now and then: that nothing is left is believed the second time, as
        records on their way from the consumer to the agent show nowhere."""
        consumer, quiet, waiting = self.app.consumer, not self._in_hand, 0
        ends: dict[Any, int] = {}
        for each in consumer.assignment():
            end: int | None = consumer.highwater(each)  # None until the first fetch, whatever its type says
            at = await consumer.position(each)
            if end is None or at is None:
                self.behind = None
                return
            ends[each] = end
            quiet = quiet and at >= end
            waiting += max(0, end - self._taken.get(each, at))
        read, before = self.counted["read"], self._read_before
        self._read_before = read
        if not ends:
            self.behind = None
        elif quiet and read == before and not any(topic.queue.qsize() for topic in self.app.topics):
            self._taken = ends  # markers of transactions may lie behind the last record
            self.behind = 0
        else:
            self.behind = max(1, waiting)

    async def _turn(self) -> None:
        """Waits until it may read; sleeps where a piece was done too fast."""
        self._in_piece += 1
        if self._in_piece >= PIECE:
            self._in_piece = 0
            await asyncio.sleep(max(0.0, self._next_piece - time.monotonic()))
            self._next_piece = time.monotonic() + self._pace
        await self.may_read.wait()


def _application(bootstrap_servers: str, group: str) -> faust.App:
    app = _Reading(
        group,
        broker=[f"kafka://{server.strip()}" for server in bootstrap_servers.split(",")],
        autodiscover=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        # What is read ahead is bounded: so many records, and one fetch per partition. A full buffer costs more than it
        # saves, as Faust then pauses the partition and fetches anew.
        stream_buffer_maxsize=2_000,
        broker_max_poll_records=500,
        consumer_max_fetch_size=131_072,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=10_000,
        # Nothing is ever committed; nor are pauses a fault, which the same timer would complain of.
        broker_commit_interval=86_400.0,
        broker_session_timeout=10.0,
        broker_rebalance_timeout=10.0,
        broker_heartbeat_interval=3.0,
        broker_request_timeout=15.0,
        stream_wait_empty=False,
    )
    transport: Any = app.transport
    transport.Consumer = _CommittedOnly
    return app


class _OnlyReads(BootStrategy):
    enable_kafka_producer = False
    enable_web = False
    enable_sensors = False


class _Reading(faust.App):
    BootStrategy = _OnlyReads

    async def on_first_start(self) -> None:
        """Nothing of it lies on disk: no folders are made."""


class _Daemon(WorkerThread):
    def __init__(self, service: ServiceThread, **options: Any) -> None:
        super().__init__(service, **options)
        self.daemon = True


class _CommittedThread(AIOKafkaConsumerThread):
    """Faust reads what was aborted too, unless it writes in transactions itself; and its thread would keep the
    process from ending where it hangs."""

    Worker = _Daemon

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        return consumer


class _CommittedOnly(Consumer):
    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _CommittedThread(self, loop=self.loop, beacon=self.beacon)
