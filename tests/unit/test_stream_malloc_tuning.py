"""Freed memory leaves the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os
from shared.stream.malloc_tuning import trim_heap

def resident():
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

rows = [b"x" * (20_000 + i % 50_000) for i in range(2_000)]
kept = rows[::50]
del rows
before = resident()
assert trim_heap()
print((before - resident()) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_what_lies_between_blocks_in_use_goes_back() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, check=True)
    assert int(said.stdout) > 20
