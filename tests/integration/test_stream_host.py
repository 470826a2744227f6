"""Tests of a worker as it is deployed: broker restarts, memory, dead letters, and fencing."""

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
    all_processed,
    create_tallies_topic,
    host_command,
    is_ready,
    running_worker,
    tally,
    write_tallies,
)
from tests.integration.stream_rig import CREATE, Rig, until, violations

MIB = 1 << 20


def test_too_many_errors_halt_the_partitions_but_not_the_worker(
    kafka: str, fresh: str, tmp_path: Path
) -> None:
    rig = Rig(kafka, fresh).create()
    rig.send(rig.a, [(f"k{n}", f"bug {n}") for n in range(500)])
    argv, port = host_command(rig, tmp_path)
    with running_worker(tmp_path, argv, port) as running:
        until(running.answers("/readyz", lambda response: response.text.count("halted at") == 2), "halting")
        response = running.http.get("/readyz")
        assert response.status_code == 503
        assert response.json()["ready"] is False
        reason = response.json()["checks"]["engine"]
        assert "more than 10, and more than 10% of the last 100 records" in reason
        assert "LookupError: bug" in reason
        assert "20 records became dead letters" in response.json()["checks"]["warnings"]
        assert running.http.get("/livez").status_code == 200
    assert len(rig.read(rig.dead)) == 20


def test_worker_recovers_after_a_broker_restart(fresh: str, tmp_path: Path) -> None:
    """The broker restarts cleanly, as in an upgrade. The worker reports the wait and recovers, with its live view."""
    with own_broker(tmp_path / "kafka") as broker:
        rig = Rig(broker.address, fresh).create()
        tallies = f"{fresh}.tallies"
        create_tallies_topic(broker.address, tallies)
        write_tallies(broker.address, tallies, tally(V1, "u1", up=1))
        sent = {f"a{n}": f"k{n % 40}" for n in range(500)}
        more = {f"b{n}": f"k{n % 40}" for n in range(500)}
        argv, port = host_command(rig, tmp_path, view="")
        with running_worker(tmp_path, argv, port) as running:
            rig.send(rig.a, [(key, event) for event, key in sent.items()])
            until(running.answers("/readyz", is_ready), "ready")
            until(running.answers("/partitions", all_processed(rig)), "all of it")
            broker.end()
            until(running.answers("/readyz", lambda response: response.status_code == 503), "noticing")
            reason = running.get("/readyz")["checks"]["engine"]
            assert reason.startswith("waiting: for Kafka at ")
            assert broker.address in reason
            assert running.http.get("/livez").status_code == 200
            broker.start()
            until(running.answers("/readyz", is_ready), "recovery", 30)
            rig.send(rig.b, [(key, event) for event, key in more.items()])
            until(running.answers("/partitions", all_processed(rig)), "the rest")
            write_tallies(broker.address, tallies, tally(V1, "u2", up=1))
            until(
                running.answers("/tallies", lambda a: a.json()["totals"]["up"] == 2), "the live view, too", 40
            )
        assert violations(rig, sent | more) == []


def test_fenced_worker_ends_with_the_reason(kafka: str, fresh: str, tmp_path: Path) -> None:
    rig = Rig(kafka, fresh).create()
    first, second = tmp_path / "first", tmp_path / "second"
    argv, port = host_command(rig, first, identity="both")
    sent: dict[str, str] = {}
    with pytest.raises(AssertionError, match="was taken over"), running_worker(first, argv, port) as running:  # noqa: PT012
        until(running.answers("/readyz", is_ready), "the first")
        argv, port = host_command(rig, second, identity="both")
        with running_worker(second, argv, port) as other:
            until(other.answers("/readyz", is_ready), "the second")
            sent = {f"a{n}": f"k{n % 40}" for n in range(200)}
            rig.send(rig.a, [(key, event) for event, key in sent.items()])
            assert running.child.wait(20) != 0
            until(other.answers("/partitions", all_processed(rig)), "all of it, by the second")
    assert violations(rig, sent) == []


def peak_memory(running: Worker) -> int:
    """Return the peak memory of the process, in bytes."""
    status = Path(f"/proc/{running.child.pid}/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def test_input_far_ahead_stays_within_the_documented_memory(kafka: str, fresh: str, tmp_path: Path) -> None:
    """All of `b` is newer than all of `a`, so it waits in memory, within the bound that `EngineConfig` documents."""
    rig = Rig(kafka, fresh, partitions=1)
    admin = AdminClient({"bootstrap.servers": kafka})
    inputs = [NewTopic(topic, 1, 1, config=CREATE) for topic in (rig.a, rig.b)]
    others = [NewTopic(rig.dead, 1, 1), NewTopic(rig.out, 1, 1)]
    for future in admin.create_topics(inputs + others).values():
        future.result()
    base, behind, ahead, large = 1_700_000_000_000, 30_000, 110_000, "x" * 2_000
    argv, port = host_command(rig, tmp_path, step="silent", require_append_time=False)
    config = rig.config()
    # As `EngineConfig` documents: the buffers, one prefetch, one slice with its state, records on their way to Kafka.
    limit = config.buffer_bytes + (PREFETCH_KB << 10) + 2 * MIB + 2 * config.slice_bytes + 64 * MIB
    assert ahead * len(large) > 1.2 * limit
    with running_worker(tmp_path, argv, port) as running:
        until(
            running.answers("/readyz", lambda response: rig.changelog in response.text),
            "waiting for its last topic",
        )
        before = peak_memory(running)
        rig.send(
            rig.b, ((f"k{n % 50}", large) for n in range(ahead)), (base + 10**9 + n for n in range(ahead))
        )
        rig.send(rig.a, ((f"k{n % 50}", "old") for n in range(behind)), (base + n for n in range(behind)))
        changelog = NewTopic(rig.changelog, 1, 1, config={"cleanup.policy": "compact"})
        admin.create_topics([changelog])[rig.changelog].result()
        until(running.answers("/readyz", is_ready), "ready")
        until(running.answers("/partitions", all_processed(rig)), "all of it", 40)
        grown = peak_memory(running) - before
        assert grown < limit, f"{grown // MIB} MiB, of at most {limit // MIB} MiB"
