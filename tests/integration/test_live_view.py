"""The live view on real Kafka: Faust shows what the engine wrote, and whatever happens to Faust, the engine's records
all arrive exactly once (I1)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.local.ports import choose
from services.processor.live_view.agent import LiveView
from shared.topics import FEEDBACK_TALLIES, TOPICS
from tests.brokers import own_kafka
from tests.integration.stream_hosts import (
    V1,
    V2,
    Worker,
    create,
    hosted,
    positions_at_end,
    ready,
    tally,
    worker,
    write,
)
from tests.integration.stream_rig import Rig, complaints, events, swapped, until

# --- the view by itself -------------------------------------------------------------------------------------------


def viewed(view: LiveView, look: Callable[[], Awaitable[None]]) -> None:
    """`look` beside a running view."""

    async def run() -> None:
        await view.app.start()
        try:
            await look()
        finally:
            await view.app.stop()

    asyncio.run(run())


async def comes(view: LiveView, holds: Callable[[], bool]) -> None:
    """Waits for it, while the view measures itself."""
    async with asyncio.timeout(15):
        while True:
            await view.measure()
            assert view.failure is None
            if holds():
                return
            await asyncio.sleep(0.02)


async def caught_up(view: LiveView) -> None:
    await comes(view, lambda: view.behind == 0)


def test_it_shows_the_newest_tallies_that_were_committed(kafka: str, fresh: str) -> None:
    """Compressed ones, garbage and deletions between them; what was aborted never counts."""
    topic = f"{fresh}.tallies"
    create(kafka, topic)
    many = [tally(V1, f"u{n}", n % 2, up=1, ratings=1, rating_sum=n % 5 + 1) for n in range(100)]
    write(kafka, topic, *many, (b"garbage", b"\xff\xfe no tally", 0))
    write(kafka, topic, tally(V1, "u0", 0, up=1_000), commit=False)
    write(kafka, topic, tally(V2, "u1", 1, corrections=2), tally(V1, "u2", 0, down=3), (many[4][0], None, 0))
    view = LiveView(kafka, f"{fresh}-live", topic=topic)

    async def look() -> None:
        await caught_up(view)
        shown = view.sums.shown()
        assert shown["versions"][V1]["up"] == 98
        assert shown["versions"][V1]["down"] == 3
        assert shown["versions"][V1]["users"] == 99
        assert shown["versions"][V2]["corrections"] == 2
        assert view.counted == {"read": 104, "unreadable": 1}
        write(kafka, topic, tally(V2, "u1", 1, corrections=7))
        await comes(view, lambda: view.sums.shown()["versions"][V2]["corrections"] == 7)

    topics_before = set(AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=10).topics)
    viewed(view, look)
    admin = AdminClient({"bootstrap.servers": kafka})
    assert set(admin.list_topics(timeout=10).topics) - topics_before <= {"__consumer_offsets"}
    group = f"{fresh}-live"
    listed = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result()
    assert listed.topic_partitions == [], "it commits nothing: each start reads all"


def test_it_reads_no_faster_than_its_rate_and_not_at_all_while_it_may_not(kafka: str, fresh: str) -> None:
    topic = f"{fresh}.tallies"
    create(kafka, topic)
    write(kafka, topic, *(tally(V1, f"u{n}", n % 2, up=1) for n in range(1_000)))
    view = LiveView(kafka, f"{fresh}-live", topic=topic, records_per_s=500)

    async def look() -> None:
        await comes(view, lambda: view.counted["read"] >= 100)
        began, before = time.monotonic(), view.counted["read"]
        await asyncio.sleep(0.5)
        rate = (view.counted["read"] - before) / (time.monotonic() - began)
        assert 0 < rate < 700
        view.may_read.clear()
        await asyncio.sleep(0.1)
        before = view.counted["read"]
        await asyncio.sleep(0.3)
        assert view.counted["read"] == before < 1_000
        await view.measure()
        assert view.behind is not None
        assert view.behind > 0
        view.may_read.set()
        await caught_up(view)
        assert view.sums.shown()["totals"]["up"] == 1_000

    viewed(view, look)


# --- beside the engine --------------------------------------------------------------------------------------------


FAILS = ("raises", "sends", "unreachable")
HOLDS = ("blocks", "never stops", "")


def sent_to(rig: Rig, topic: str, prefix: str) -> dict[str, str]:
    made = events(500, 40, prefix)
    rig.send(topic, swapped(made))
    return made


def test_whatever_happens_to_faust_the_engine_s_records_arrive_exactly_once(
    kafka: str, fresh: str, tmp_path: Path
) -> None:
    """One worker for each thing that may happen to its live view, all at the same time."""
    rigs = {how: Rig(kafka, f"{fresh}{n}") for n, how in enumerate((*FAILS, *HOLDS))}
    sent: dict[str, dict[str, str]] = {}
    with ExitStack() as workers:
        running: dict[str, Worker] = {}
        for how, rig in rigs.items():
            rig.create()
            create(kafka, f"{rig.name}.tallies")
            write(kafka, f"{rig.name}.tallies", *(tally(V1, f"u{n}", n % 2, up=1) for n in range(10)))
            sent[how] = sent_to(rig, rig.a, "a")
            folder = tmp_path / rig.name
            argv, port = hosted(rig, folder, view=how)
            running[how] = workers.enter_context(worker(folder, argv, port))
        for how, one in running.items():
            until(one.answers("/readyz", ready), f"ready: {how}")
        for how in FAILS:
            one = running[how]
            until(one.answers("/tallies", lambda a: a.json()["failures"] >= 1), f"Faust failing: {how}", 30)
            assert "loopwright_live_view_failures_total" in one.http.get("/metrics").text
            until(one.answers("/readyz", lambda a: "starts anew after" in a.text), f"saying so: {how}")
        for how, rig in rigs.items():
            sent[how] |= sent_to(rig, rig.b, "b")
        for how, rig in rigs.items():
            one = running[how]
            until(one.answers("/partitions", positions_at_end(rig)), f"all of it: {how}")
            assert ready(one.http.get("/readyz")), how
            assert one.get("/readyz")["checks"]["engine"].startswith("ok"), how
        until(running[""].answers("/tallies", lambda a: a.json()["behind"] == 0), "the view at the end")
        assert running[""].get(f"/tallies?version={V1}")["versions"][V1]["up"] == 10
        for one in running.values():
            one.stop()
    assert {how: complaints(rig, sent[how]) for how, rig in rigs.items()} == {how: [] for how in rigs}


# --- the processor as it is started -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka with the processor's own topics, whose names are fixed."""
    with own_kafka(tmp_path_factory.mktemp("own")) as address:
        admin = AdminClient({"bootstrap.servers": address})
        wanted = [NewTopic(t.name, t.partitions(2), 1, config=t.broker_config()) for t in TOPICS.values()]
        for future in admin.create_topics(wanted).values():
            future.result()
        write(address, FEEDBACK_TALLIES.name, tally(V1, "u1", 0, up=2), tally(V1, "u2", 1, down=1))
        yield address


FAUST = str(Path(sys.executable).with_name("faust"))


def test_faust_s_command_line_and_ours_run_the_same_processor(own: str, tmp_path: Path) -> None:
    """Side by side, as two instances: the partitions are shared, and each shows the whole live view."""
    commands = {
        "faust": [FAUST, "-A", "services.processor.service", "worker"],
        "python": [sys.executable, "-m", "services.processor"],
    }
    with ExitStack() as workers:
        running = {}
        for name, argv in commands.items():
            port = choose({"processor": 0})["processor"]
            env = {
                "KAFKA_BOOTSTRAP_SERVERS": own,
                "LOOPWRIGHT_PARTITIONS": "2",
                "LOOPWRIGHT_DATA_DIR": str(tmp_path / name / "not" / "there yet"),
                "LOOPWRIGHT_PROCESSOR_PORT": str(port),
                "LOOPWRIGHT_PROCESSOR_INSTANCE": name,
            }
            running[name] = workers.enter_context(worker(tmp_path / name, argv, port, env))
        for one in running.values():
            until(one.answers("/readyz", ready), "ready")
            until(one.answers("/partitions", lambda a: len(a.json()["partitions"]) == 1), "its share")
            until(one.answers("/tallies", lambda a: a.json()["totals"]["users"] == 2), "the live view")
        owned = []
        for one in running.values():
            shown = one.get("/tallies")
            assert (shown["totals"]["up"], shown["totals"]["down"]) == (2, 1)
            (partition,) = one.get("/partitions")["partitions"]
            told = {"positions", "lag", "keys", "size_bytes", "last_commit_ms", "dead_letters", "records"}
            assert told <= partition.keys()
            owned.append(partition["partition"])
        assert sorted(owned) == [0, 1]
        for one in running.values():
            one.stop()
