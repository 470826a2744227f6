"""Gauges of an engine: each is declared once, has its labels, and follows the status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shared.adapters.clock import ManualClock
from shared.stream.engine import Engine
from shared.stream.engine_metrics import EngineCollector
from shared.stream.engine_status import PartitionStatus
from shared.telemetry import ENGINE_GAUGES
from tests.unit.test_stream_config import config

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def partition(number: int, now_ms: int, **changes: Any) -> PartitionStatus:
    fields: dict[str, Any] = {
        "partition": number,
        "positions": {"a": 5},
        "lag": {"a": 3, "b": 0},
        "keys": 7,
        "size_bytes": 1_000,
        "records": 5,
        "dead_letters": 0,
        "time_ms": now_ms - 4_000,
        "last_commit_ms": now_ms,
    }
    return PartitionStatus(**fields | changes)


def samples(engine: Engine, clock: ManualClock) -> dict[tuple[str, ...], float]:
    """Return the collected values by name and label values, in the order of label names, without the application."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine, clock))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            assert sample.labels.pop("application") == engine.config.application
            found[(sample.name, *(sample.labels[label] for label in sorted(sample.labels)))] = sample.value
    return found


def test_gauges_follow_the_status_of_each_partition() -> None:
    clock = ManualClock()
    engine = Engine(config(), lambda _state, _record: [], clock=clock)
    now = clock.now_ms()
    engine._status.set_partitions(
        (
            partition(0, now, oldest_ms=now - 2_500, problem="tick raised"),
            partition(1, now, halted="a bug", size_bytes=None, time_ms=0),
        )
    )
    engine._status.set_state("halted", "partition 1: a bug")
    engine._status.set_restored(0.25)
    found = samples(engine, clock)
    assert found["loopwright_engine_lag", "0", "a"] == 3
    assert found["loopwright_engine_lag", "1", "b"] == 0
    assert found["loopwright_engine_oldest_record_age_seconds", "0"] == 2.5
    assert found["loopwright_engine_oldest_record_age_seconds", "1"] == 0
    assert found["loopwright_engine_behind_clock_seconds", "0"] == 4
    assert found["loopwright_engine_stream_time_seconds", "0"] == (now - 4_000) / 1000
    assert ("loopwright_engine_stream_time_seconds", "1") not in found
    assert found["loopwright_engine_state_bytes", "0"] == 1_000
    assert ("loopwright_engine_state_bytes", "1") not in found
    assert found["loopwright_engine_state_keys", "1"] == 7
    assert found["loopwright_engine_partition_halted", "0"] == 0
    assert found["loopwright_engine_partition_halted", "1"] == 1
    assert found["loopwright_engine_notifications_failing", "0"] == 1
    assert found["loopwright_engine_restored_ratio",] == 0.25
    assert found["loopwright_engine_partitions",] == 2
    assert found["loopwright_engine_ready",] == 0
    assert found["loopwright_engine_state", "halted"] == 1
    assert found["loopwright_engine_state", "running"] == 0
    assert found["loopwright_engine_clock_agrees",] == 1


def test_engine_without_partitions_has_its_own_gauges_only() -> None:
    clock = ManualClock()
    engine = Engine(config(), lambda _state, _record: [], clock=clock)
    engine._status.set_clocks("ticks are off: this host's clock is 90 s ahead")
    found = samples(engine, clock)
    assert found["loopwright_engine_clock_agrees",] == 0
    assert found["loopwright_engine_partitions",] == 0
    assert not any(name == "loopwright_engine_lag" for name, *_ in found)


def test_every_gauge_is_in_the_operations_table() -> None:
    text = OPERATIONS.read_text()
    assert [metric.name for metric in ENGINE_GAUGES if f"`{metric.name}" not in text] == []
