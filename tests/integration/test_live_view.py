"""The live view on real Kafka: it shows what the engine committed, and none of its failures harms the engine (I1)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient

from deploy.local.ports import choose_ports
from services.processor.live_view.view import LiveView, TallyReader
from shared.kafka_connection import KafkaConnection
from shared.topics import FEEDBACK_TALLIES
from tests.brokers import own_kafka
from tests.integration.stream_hosts import (
    V1,
    V2,
    Worker,
    all_processed,
    create_tallies_topic,
    host_command,
    is_ready,
    running_worker,
    tally,
    write_tallies,
)
from tests.integration.stream_rig import Rig, as_records, events, until, violations

# --- the view without a worker ------------------------------------------------------------------------------------


class IdleEngine:
    """An engine that is ready and has `lag` records to process."""

    def __init__(self) -> None:
        self.ready, self.state, self.lag = True, "running", 0
        self.config = SimpleNamespace(slice_records=100)

    def partitions(self) -> tuple[Any, ...]:
        return (SimpleNamespace(lag={"a": self.lag}),)


@contextmanager
def running_view(kafka: str, topic: str, engine: IdleEngine, **options: int) -> Iterator[LiveView]:
    view = LiveView(engine, lambda: TallyReader(KafkaConnection(kafka), topic), **options)  # type: ignore[arg-type]
    view.start()
    try:
        yield view
    finally:
        view.stop()
    assert view.snapshot()["failures"] == 0


def caught_up(view: LiveView) -> Callable[[], bool]:
    return lambda: view.snapshot()["behind"] == 0


def test_view_shows_the_newest_committed_tallies(kafka: str, fresh: str) -> None:
    """Records are compressed, with garbage and deletions between them. Aborted ones never count."""
    topic = f"{fresh}.tallies"
    create_tallies_topic(kafka, topic)
    many = [tally(V1, f"u{n}", n % 2, up=1, ratings=1, rating_sum=n % 5 + 1) for n in range(100)]
    write_tallies(kafka, topic, *many, (b"garbage", b"\xff\xfe no tally", 0))
    write_tallies(kafka, topic, tally(V1, "u0", 0, up=1_000), commit=False)
    write_tallies(
        kafka, topic, tally(V2, "u1", 1, corrections=2), tally(V1, "u2", 0, down=3), (many[4][0], None, 0)
    )
    admin = AdminClient({"bootstrap.servers": kafka})
    topics_before = set(admin.list_topics(timeout=10).topics)
    with running_view(kafka, topic, IdleEngine()) as view:
        until(caught_up(view), "the view at the end of the topic")
        shown = view.snapshot()
        assert shown["versions"][V1]["up"] == 98
        assert shown["versions"][V1]["down"] == 3
        assert shown["versions"][V1]["users"] == 99
        assert shown["versions"][V2]["corrections"] == 2
        assert shown["records"] == {"read": 104, "unreadable": 1, "left_out": 0}
        write_tallies(kafka, topic, tally(V2, "u1", 1, corrections=7))
        until(lambda: view.snapshot()["versions"][V2]["corrections"] == 7, "the newer tally")
    assert set(admin.list_topics(timeout=10).topics) - topics_before <= {"__consumer_offsets"}
    group = "processor-reader"
    listed = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result()
    assert [place for place in listed.topic_partitions or [] if place.topic == topic] == [], (
        "it commits nothing: each start reads the whole topic"
    )


def test_view_keeps_its_rate_and_stops_while_the_engine_is_busy(kafka: str, fresh: str) -> None:
    topic = f"{fresh}.tallies"
    create_tallies_topic(kafka, topic)
    write_tallies(kafka, topic, *(tally(V1, f"u{n}", n % 2, up=1) for n in range(1_000)))
    engine = IdleEngine()
    with running_view(kafka, topic, engine, records_per_s=500) as view:

        def read() -> int:
            return int(view.snapshot()["records"]["read"])

        until(lambda: read() >= 100, "some records read")
        began, before = time.monotonic(), read()
        time.sleep(0.5)
        rate = (read() - before) / (time.monotonic() - began)
        assert 0 < rate < 700
        engine.lag = 101
        time.sleep(0.3)
        before = read()
        time.sleep(0.3)
        assert read() == before < 1_000
        assert "waiting for the engine" in view.status() or view.status() == "starting"
        engine.lag = 0
        until(caught_up(view), "the view at the end of the topic")
        assert view.snapshot()["totals"]["up"] == 1_000


# --- next to the engine -------------------------------------------------------------------------------------------


FAILING = ("raises", "unreachable")
HINDERING = ("blocks", "never stops", "")


def send_to(rig: Rig, topic: str, prefix: str) -> dict[str, str]:
    sent = events(500, 40, prefix)
    rig.send(topic, as_records(sent))
    return sent


def test_engine_is_exactly_once_whatever_its_live_view_does(kafka: str, fresh: str, tmp_path: Path) -> None:
    """One worker for each way in which its live view may fail, all at the same time."""
    rigs = {how: Rig(kafka, f"{fresh}{n}") for n, how in enumerate((*FAILING, *HINDERING))}
    sent: dict[str, dict[str, str]] = {}
    with ExitStack() as workers:
        running: dict[str, Worker] = {}
        for how, rig in rigs.items():
            rig.create()
            create_tallies_topic(kafka, f"{rig.name}.tallies")
            write_tallies(kafka, f"{rig.name}.tallies", *(tally(V1, f"u{n}", n % 2, up=1) for n in range(10)))
            sent[how] = send_to(rig, rig.a, "a")
            folder = tmp_path / rig.name
            argv, port = host_command(rig, folder, view=how)
            running[how] = workers.enter_context(running_worker(folder, argv, port))
        for how, process in running.items():
            until(process.answers("/readyz", is_ready), f"ready: {how}")
        for how in FAILING:
            process = running[how]
            until(
                process.answers("/tallies", lambda a: a.json()["failures"] >= 1), f"view failing: {how}", 45
            )
            assert "loopwright_live_view_failures_total" in process.http.get("/metrics").text
            until(process.answers("/readyz", lambda a: "restarting after" in a.text), f"status: {how}", 45)
        for how, rig in rigs.items():
            sent[how] |= send_to(rig, rig.b, "b")
        for how, rig in rigs.items():
            process = running[how]
            until(process.answers("/partitions", all_processed(rig)), f"all processed: {how}")
            assert is_ready(process.http.get("/readyz")), how
            assert process.get("/readyz")["checks"]["engine"].startswith("ok"), how
        until(running[""].answers("/tallies", lambda a: a.json()["behind"] == 0), "the view at the end")
        assert running[""].get(f"/tallies?version={V1}")["versions"][V1]["up"] == 10
        for process in running.values():
            process.stop()
    assert {how: violations(rig, sent[how]) for how, rig in rigs.items()} == {how: [] for how in rigs}


# --- the processor as shipped -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a separate Kafka with the processor's topics, whose names are fixed."""
    with own_kafka(tmp_path_factory.mktemp("own"), partitions=2) as address:
        write_tallies(address, FEEDBACK_TALLIES.name, tally(V1, "u1", 0, up=2), tally(V1, "u2", 0, down=1))
        yield address


FAUST = str(Path(sys.executable).with_name("faust"))


def test_both_command_lines_run_the_same_processor(own: str, tmp_path: Path) -> None:
    """Two instances share the partitions, and each shows the whole live view."""
    commands = {
        "faust": [FAUST, "-A", "services.processor.service", "worker"],
        "python": [sys.executable, "-m", "services.processor"],
    }
    with ExitStack() as workers:
        running = {}
        for name, argv in commands.items():
            port = choose_ports({"processor": 0})["processor"]
            env = {
                "KAFKA_BOOTSTRAP_SERVERS": own,
                "LOOPWRIGHT_PARTITIONS": "2",
                "LOOPWRIGHT_DATA_DIR": str(tmp_path / name / "not" / "there yet"),
                "LOOPWRIGHT_PROCESSOR_PORT": str(port),
                "LOOPWRIGHT_PROCESSOR_INSTANCE": name,
            }
            running[name] = workers.enter_context(running_worker(tmp_path / name, argv, port, env))
        for process in running.values():
            until(process.answers("/readyz", is_ready), "ready")
            until(process.answers("/partitions", lambda a: len(a.json()["partitions"]) == 1), "its share")
            until(process.answers("/tallies", lambda a: a.json()["totals"]["users"] == 2), "the live view")
        owned = []
        for process in running.values():
            shown = process.get("/tallies")
            assert (shown["totals"]["up"], shown["totals"]["down"]) == (2, 1)
            (partition,) = process.get("/partitions")["partitions"]
            fields = {"positions", "lag", "keys", "size_bytes", "last_commit_ms", "dead_letters", "records"}
            assert fields <= partition.keys()
            owned.append(partition["partition"])
        assert sorted(owned) == [0, 1]
        for process in running.values():
            process.stop()
