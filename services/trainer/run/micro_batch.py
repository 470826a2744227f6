"""Micro-batch size of a run: how many rows of a batch go through the model at once.

A run starts with whole batches. When memory does not suffice, the micro-batch is halved, and the gradients of a batch's
micro-batches are summed, so a step learns the same as before. The size is stored in the run's folder, so a resumed run
keeps it.

A process that runs out of GPU memory gets an error and can report it. One that runs out of main memory is killed by the
kernel: the service then sees only the signal, and the kernel's count of such kills.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from services.trainer.files import write_whole
from services.trainer.run.folder import MICRO_BATCH

CGROUP: Final = Path("/sys/fs/cgroup")
OOM_KILL_COUNTERS = (CGROUP / "memory.events", CGROUP / "memory" / "memory.oom_control", Path("/proc/vmstat"))
"""Files in which the kernel counts processes killed for memory: of this container (cgroup v2, v1), else all."""
_OOM_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def size(run: Path, batch_size: int) -> int:
    """Return the run's micro-batch size in rows. It divides `batch_size`, and is `batch_size` by default."""
    file = run / MICRO_BATCH
    if not file.exists():
        return batch_size
    rows = int(json.loads(file.read_bytes())["micro_batch"])
    return rows if 0 < rows <= batch_size and batch_size % rows == 0 else batch_size


def can_halve(run: Path, batch_size: int) -> bool:
    """Return whether a smaller micro-batch is possible."""
    return size(run, batch_size) > 1


def halve(run: Path, batch_size: int) -> int | None:
    """Store about half the micro-batch size for the next start. Return it, or None if it is already 1."""
    before = size(run, batch_size)
    if before == 1:
        return None
    after = max(rows for rows in range(1, before // 2 + 1) if batch_size % rows == 0)
    write_whole(run / MICRO_BATCH, json.dumps({"micro_batch": after}).encode())
    return after


def reduction_note(run: Path, batch_size: int) -> str | None:
    """Return a note for operators if the micro-batch is smaller than a batch, else None."""
    rows = size(run, batch_size)
    if rows == batch_size:
        return None
    return (
        f"memory did not suffice for {batch_size} rows at once: each step uses micro-batches of {rows} rows"
    )


def kernel_oom_kills() -> int | None:
    """Return how many processes the kernel has killed for memory so far, or None if it does not count them."""
    for file in OOM_KILL_COUNTERS:
        try:
            match = _OOM_KILLS.search(file.read_text())
        except OSError:
            continue
        if match:
            return int(match.group(1))
    return None
