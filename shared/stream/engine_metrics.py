"""Prometheus gauges of an engine, read from its status whenever they are collected, so that they cost nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared.ports import Clock
from shared.stream.engine import Engine
from shared.stream.engine_status import EngineState, PartitionStatus
from shared.telemetry import (
    ENGINE_BEHIND_CLOCK,
    ENGINE_CLOCK_AGREES,
    ENGINE_GAUGES,
    ENGINE_HALTED,
    ENGINE_LAG,
    ENGINE_NOTIFICATIONS_FAILING,
    ENGINE_OLDEST_AGE,
    ENGINE_PARTITIONS,
    ENGINE_READY,
    ENGINE_RESTORED,
    ENGINE_STATE,
    ENGINE_STATE_BYTES,
    ENGINE_STATE_KEYS,
    ENGINE_STREAM_TIME,
    EngineMetric,
)

Samples = list[tuple[EngineMetric, tuple[str, ...], float]]


class EngineCollector(Collector):
    """Collector of one engine's gauges. Register it in a registry of its own: the names are those of every engine."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield every gauge, also those without samples at the moment."""
        application = self._engine.config.application
        families = {
            metric: GaugeMetricFamily(metric.name, metric.help, labels=("application", *metric.labels))
            for metric in ENGINE_GAUGES
        }
        for metric, labels, value in self._samples():
            families[metric].add_metric((application, *labels), value)
        yield from families.values()

    def _samples(self) -> Samples:
        engine, partitions = self._engine, self._engine.partitions()
        samples: Samples = [
            (ENGINE_READY, (), engine.ready),
            (ENGINE_PARTITIONS, (), len(partitions)),
            (ENGINE_RESTORED, (), engine.restored_ratio),
            (ENGINE_CLOCK_AGREES, (), engine.clock_check.startswith("ok")),
        ]
        current = engine.state
        samples += [(ENGINE_STATE, (state,), state == current) for state in get_args(EngineState)]
        now_ms = self._clock.now_ms()
        for partition in partitions:
            samples += _partition_samples(partition, now_ms)
        return samples


def _partition_samples(partition: PartitionStatus, now_ms: int) -> Samples:
    number = (str(partition.partition),)
    oldest, time_ms = partition.oldest_ms, partition.time_ms
    samples: Samples = [
        (ENGINE_LAG, (topic, *number), float(lag)) for topic, lag in sorted(partition.lag.items())
    ]
    samples += [
        (ENGINE_OLDEST_AGE, number, 0.0 if oldest is None else max(0, now_ms - oldest) / 1000),
        (ENGINE_STATE_KEYS, number, partition.keys),
        (ENGINE_HALTED, number, partition.halted is not None),
        (ENGINE_NOTIFICATIONS_FAILING, number, partition.problem is not None),
    ]
    if time_ms:  # there is no stream time before the first record
        samples.append((ENGINE_STREAM_TIME, number, time_ms / 1000))
        samples.append((ENGINE_BEHIND_CLOCK, number, (now_ms - time_ms) / 1000))
    if partition.size_bytes is not None:
        samples.append((ENGINE_STATE_BYTES, number, partition.size_bytes))
    return samples
