"""Tests of the allocator settings: freed memory returns to the operating system."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os
from shared.stream.malloc_tuning import trim_heap

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

rows = [b"x" * (20_000 + i % 50_000) for i in range(2_000)]
kept = rows[::50]
del rows
before = resident()
assert trim_heap()
print((before - resident()) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_trim_heap_returns_memory_between_used_blocks() -> None:
    output = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, check=True)
    assert int(output.stdout) > 20
