"""Partitions of keys, against vectors of Kafka's own tests. The contract suite compares with a real producer."""

from __future__ import annotations

import pytest

from shared.partitioning import murmur2, partition_for

# org.apache.kafka.common.utils.UtilsTest.testMurmur2
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("key", VECTORS, ids=lambda key: key.decode())
def test_murmur2_equals_kafkas(key: bytes) -> None:
    assert murmur2(key) == VECTORS[key] % 2**32


def test_negative_hash_gives_a_valid_partition() -> None:
    assert VECTORS[b"21"] < 0
    assert partition_for(b"21", 6) == (VECTORS[b"21"] & 0x7FFFFFFF) % 6


def test_keys_spread_over_all_partitions() -> None:
    counts = [0] * 6
    for n in range(6000):
        counts[partition_for(f"chatcmpl-{n:032x}".encode(), 6)] += 1
    assert min(counts) > 850
