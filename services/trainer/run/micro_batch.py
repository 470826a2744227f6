"""Micro-batch size of a run: how many tokens go through the model at once.

A run starts with the size of its resolved recipe, or on a GPU with the size that its process measures once
(`training/memory_probe.py`). When memory does not suffice, it is halved, and the gradients of a
step's micro-batches are summed, so a step learns the same as before. A micro-batch has at least one row. The size is
stored in the run's folder, so a resumed run keeps it.

A process that runs out of GPU memory gets an error and can report it. One that runs out of main memory is killed by the
kernel: the service then sees only the signal, and the kernel's count of such kills.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from services.trainer.files import write_whole
from services.trainer.run.folder import MICRO_BATCH

CGROUP: Final = Path("/sys/fs/cgroup")
OOM_KILL_COUNTERS = (CGROUP / "memory.events", CGROUP / "memory" / "memory.oom_control", Path("/proc/vmstat"))
"""Files in which the kernel counts processes killed for memory: of this container (cgroup v2, v1), else all."""
_OOM_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class MicroBatchSize:
    """Size of a run's micro-batches, in tokens."""

    tokens: int
    planned: int
    """Size with which the run started."""
    longest_row: int
    """Tokens of the run's largest row. A smaller micro-batch has one row, so it needs no less memory."""
    measured: bool = False
    """The run measured its size, and does not do so again."""

    @property
    def is_smallest(self) -> bool:
        """Return whether a smaller size would change nothing."""
        return self.tokens <= self.longest_row


def start(run: Path, tokens: int, longest_row: int) -> MicroBatchSize:
    """Return the run's micro-batch size; store `tokens` if it has none yet."""
    stored = read(run)
    if stored is None:
        stored = MicroBatchSize(tokens, tokens, longest_row)
        _write(run, stored)
    return stored


def record_measured(run: Path, tokens: int) -> None:
    """Store the size that the run measured, with which it starts."""
    stored = read(run)
    longest_row = tokens if stored is None else stored.longest_row
    _write(run, MicroBatchSize(tokens, tokens, longest_row, measured=True))


def read(run: Path) -> MicroBatchSize | None:
    """Return the run's micro-batch size, or None if training has not started."""
    file = run / MICRO_BATCH
    return MicroBatchSize(**json.loads(file.read_bytes())) if file.exists() else None


def can_halve(run: Path) -> bool:
    """Return whether a smaller micro-batch would need less memory."""
    stored = read(run)
    return stored is not None and not stored.is_smallest


def halve(run: Path) -> int | None:
    """Store half the micro-batch size for the next start. Return it, or None if that would need no less memory."""
    stored = read(run)
    if stored is None or stored.is_smallest:
        return None
    # A size between half the largest row and that row would give the same micro-batches as the row's own size.
    tokens = max(stored.longest_row, stored.tokens // 2)
    _write(run, replace(stored, tokens=tokens))
    return tokens


def reduction_note(run: Path) -> str | None:
    """Return a note for operators if the micro-batch is smaller than planned, else None."""
    stored = read(run)
    if stored is None or stored.tokens >= stored.planned:
        return None
    return (
        f"memory did not suffice for {stored.planned} tokens at once: each step uses micro-batches of "
        f"{stored.tokens} tokens"
    )


def _write(run: Path, size: MicroBatchSize) -> None:
    write_whole(run / MICRO_BATCH, json.dumps(asdict(size)).encode())


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
