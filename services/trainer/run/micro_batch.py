"""When memory does not suffice: a step's batch is taken in smaller pieces whose gradients add up, so that what is
learned stays the same. How small the pieces are is kept with the run, so that it resumes with them.

A process that runs out on a GPU is told so and says it. On a CPU the kernel kills it: all that is left is a signal, and
the kernel's count of such kills.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from services.trainer.files import write_whole
from services.trainer.run.folder import MICRO_BATCH

CGROUP = Path("/sys/fs/cgroup")
OOM_KILL_COUNTERS = (CGROUP / "memory.events", CGROUP / "memory" / "memory.oom_control", Path("/proc/vmstat"))
"""Where the kernel counts: of this container (cgroup v2, v1), else of the machine."""
_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_TOLD = re.compile(
    r"out of memory|DefaultCPUAllocator|can't allocate memory|Cannot allocate memory", re.IGNORECASE
)


def micro_batch(run: Path, batch_size: int) -> int:
    """How many rows of a step the run takes at a time: all, unless memory did not suffice. Divides `batch_size`."""
    file = run / MICRO_BATCH
    if not file.exists():
        return batch_size
    kept = int(json.loads(file.read_bytes())["micro_batch"])
    return kept if 0 < kept <= batch_size and batch_size % kept == 0 else batch_size


def halve(run: Path, batch_size: int) -> int | None:
    """Takes about half as many at a time from the next start on; returns how many, None where it is one already."""
    before = micro_batch(run, batch_size)
    if before == 1:
        return None
    after = max(one for one in range(1, before // 2 + 1) if batch_size % one == 0)
    write_whole(run / MICRO_BATCH, json.dumps({"micro_batch": after}).encode())
    return after


def reduction_note(run: Path, batch_size: int) -> str | None:
    """For progress and report; None where memory sufficed."""
    micro = micro_batch(run, batch_size)
    if micro == batch_size:
        return None
    return f"memory did not suffice for {batch_size} rows at a time: each step takes {batch_size} in pieces of {micro}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory did not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _TOLD.search(str(error)) is not None
    )


def kernel_oom_kills() -> int | None:
    """How many processes it has killed for memory so far; None where it does not say."""
    for file in OOM_KILL_COUNTERS:
        try:
            found = _KILLS.search(file.read_text())
        except OSError:
            continue
        if found:
            return int(found.group(1))
    return None
