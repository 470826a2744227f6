"""A worker with the engine as it is deployed: its broker goes and comes back, its memory, its end when it is fenced."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from shared.stream.config import PREFETCH_KB
from tests.fault.broker import own_broker
from tests.integration.stream_hosts import (
    V1,
    Worker,
    create,
    hosted,
    positions_at_end,
    ready,
    tally,
    worker,
    write,
)
from tests.integration.stream_rig import CREATE, Rig, complaints, until

MIB = 1 << 20


def test_too_many_dead_letters_stop_the_engine_and_not_the_worker_which_says_so(
    kafka: str, fresh: str, tmp_path: Path
) -> None:
    rig = Rig(kafka, fresh).create()
    rig.send(rig.a, [(f"k{n}", f"bad {n}") for n in range(500)])
    argv, port = hosted(rig, tmp_path)
    with worker(tmp_path, argv, port) as running:
        until(running.answers("/readyz", lambda a: "halted" in a.text), "halting")
        answer = running.http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["ready"] is False
        said = answer.json()["checks"]["engine"]
        assert "more than 10% of the last 100 records" in said
        assert "rejected: bad" in said
        assert running.http.get("/livez").status_code == 200
    assert rig.read(rig.dead) == []


def test_a_broker_that_stops_and_starts_again_is_waited_for(fresh: str, tmp_path: Path) -> None:
    """In order, as in an upgrade. The worker says what it waits for and goes on by itself, its live view too."""
    with own_broker(tmp_path / "kafka") as broker:
        rig = Rig(broker.address, fresh).create()
        tallies = f"{fresh}.tallies"
        create(broker.address, tallies)
        write(broker.address, tallies, tally(V1, "u1", up=1))
        sent = {f"a{n}": f"k{n % 40}" for n in range(500)}
        more = {f"b{n}": f"k{n % 40}" for n in range(500)}
        argv, port = hosted(rig, tmp_path, view="")
        with worker(tmp_path, argv, port) as running:
            rig.send(rig.a, [(key, event) for event, key in sent.items()])
            until(running.answers("/readyz", ready), "ready")
            until(running.answers("/partitions", positions_at_end(rig)), "all of it")
            broker.end()
            until(running.answers("/readyz", lambda a: a.status_code == 503), "noticing")
            said = running.get("/readyz")["checks"]["engine"]
            assert said.startswith("waiting: for Kafka at ")
            assert broker.address in said
            assert running.http.get("/livez").status_code == 200
            broker.start()
            until(running.answers("/readyz", ready), "going on by itself", 30)
            rig.send(rig.b, [(key, event) for event, key in more.items()])
            until(running.answers("/partitions", positions_at_end(rig)), "the rest")
            write(broker.address, tallies, tally(V1, "u2", up=1))
            until(
                running.answers("/tallies", lambda a: a.json()["totals"]["up"] == 2), "the live view, too", 40
            )
        assert complaints(rig, sent | more) == []


def test_a_worker_whose_name_is_taken_ends_and_says_why(kafka: str, fresh: str, tmp_path: Path) -> None:
    rig = Rig(kafka, fresh).create()
    first, second = tmp_path / "first", tmp_path / "second"
    argv, port = hosted(rig, first)
    sent: dict[str, str] = {}
    with pytest.raises(AssertionError, match="was taken over"), worker(first, argv, port) as running:  # noqa: PT012
        until(running.answers("/readyz", ready), "the first")
        argv, port = hosted(rig, second)
        with worker(second, argv, port) as other:
            until(other.answers("/readyz", ready), "the second")
            sent = {f"a{n}": f"k{n % 40}" for n in range(200)}
            rig.send(rig.a, [(key, event) for event, key in sent.items()])
            assert running.child.wait(20) != 0
            until(other.answers("/partitions", positions_at_end(rig)), "all of it, by the second")
    assert complaints(rig, sent) == []


def peak(running: Worker) -> int:
    """The most memory that the process had so far, in bytes."""
    status = Path(f"/proc/{running.child.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def test_one_input_far_ahead_of_the_other_stays_within_the_stated_memory(
    kafka: str, fresh: str, tmp_path: Path
) -> None:
    """All of `b` is younger than all of `a`: it is read ahead, and waits in memory no further than is stated."""
    rig = Rig(kafka, fresh, partitions=1)
    admin = AdminClient({"bootstrap.servers": kafka})
    inputs = [NewTopic(topic, 1, 1, config=CREATE) for topic in (rig.a, rig.b)]
    others = [NewTopic(rig.dead, 1, 1), NewTopic(rig.out, 1, 1)]
    for future in admin.create_topics(inputs + others).values():
        future.result()
    base, behind, ahead, large = 1_700_000_000_000, 30_000, 110_000, "x" * 2_000
    argv, port = hosted(rig, tmp_path, step="silent")
    config = rig.config()
    # As `EngineConfig` says: the buffers, one call's worth, one slice with its state, what is on its way to Kafka.
    stated = config.buffer_bytes + (PREFETCH_KB << 10) + 2 * MIB + 2 * config.slice_bytes + 64 * MIB
    assert ahead * len(large) > 1.2 * stated
    with worker(tmp_path, argv, port) as running:
        until(running.answers("/readyz", lambda a: rig.changelog in a.text), "waiting for its last topic")
        before = peak(running)
        rig.send(
            rig.b, ((f"k{n % 50}", large) for n in range(ahead)), (base + 10**9 + n for n in range(ahead))
        )
        rig.send(rig.a, ((f"k{n % 50}", "old") for n in range(behind)), (base + n for n in range(behind)))
        admin.create_topics([NewTopic(rig.changelog, 1, 1)])[rig.changelog].result()
        until(running.answers("/readyz", ready), "ready")
        until(running.answers("/partitions", positions_at_end(rig)), "all of it", 40)
        grown = peak(running) - before
        assert grown < stated, f"{grown // MIB} MiB, of {stated // MIB} MiB stated"
