"""The processes that train a run together.

torchrun's agent starts them (`worker/training_group.py`) and names each by a rank. Rank 0 alone reads and writes the
run's folder. It shares what the others need over the process group, so they may be on other machines, and files are not
shared between machines. Everything that one process decides alone, such as when to stop, is agreed on after each step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import distributed

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

TIMEOUT: Final = timedelta(minutes=30)
"""How long a process waits for the others. The end of one on the same machine is noticed at once."""
CHUNK_BYTES: Final = 2**26
_PEER_LOST_MESSAGE: Final = re.compile(
    r"gloo|ncclRemoteError|NCCL|Connection (reset|closed|refused)|Broken pipe|TCPStore|Timed out",
    re.IGNORECASE,
)


def is_peer_lost(error: BaseException) -> bool:
    """Return whether `error` means that another process of the run ended or does not answer."""
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and _PEER_LOST_MESSAGE.search(str(error)) is not None
    )


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of a run as one of them sees them; by default this process alone.

    All methods must be called by all processes in the same order.
    """

    rank: int = 0
    processes: int = 1
    node: int = 0
    """Number of this machine."""
    nodes: int = 1
    cpu_group: distributed.ProcessGroup | None = None
    """Group that sends tensors in main memory. None: the default group does."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any process has set it. Waits for the others, but not for a GPU."""
        if self.processes == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.uint8)
        distributed.all_reduce(values, distributed.ReduceOp.MAX, group=self.cpu_group)
        return tuple(bool(value) for value in values)

    def share(self, content: bytes) -> bytes:
        """Return the content that rank 0 gives. That of other ranks is ignored."""
        if self.processes == 1:
            return content
        size = torch.tensor([len(content)])
        distributed.broadcast(size, 0, group=self.cpu_group)
        shared = bytearray(content if self.rank == 0 else int(size))
        for start in range(0, len(shared), CHUNK_BYTES):
            part = torch.frombuffer(shared, dtype=torch.uint8)[start : start + CHUNK_BYTES]
            distributed.broadcast(part, 0, group=self.cpu_group)
        return bytes(shared)

    def decide(self, flag: bool) -> bool:
        """Return the flag that rank 0 gives. Others may have another one, because their devices round differently."""
        return self.share(bytes([flag])) == bytes([True])

    def share_folder(self, folder: Path | None, scratch: Path) -> Path | None:
        """Return a folder with the files of rank 0's `folder`, or None if rank 0 gives None.

        On rank 0's machine it is that folder itself, on others a copy in `scratch`. It has no folders inside.
        """
        name = self.share(str(folder or "").encode()).decode()
        if not name:
            return None
        target = Path(name)
        if self.nodes == 1:
            return target
        if self.node != 0:
            target = scratch / target.name
            target.mkdir(parents=True, exist_ok=True)
        files = sorted(file.name for file in Path(name).iterdir()) if self.rank == 0 else []
        for file in self.share("\n".join(files).encode()).decode().splitlines():
            content = self.share((target / file).read_bytes() if self.rank == 0 else b"")
            if self.node != 0:
                (target / file).write_bytes(content)
        return target

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of the values over all processes."""
        sums = torch.tensor(list(values), dtype=torch.float64)
        if self.processes > 1:
            distributed.all_reduce(sums, group=self.cpu_group)
        return [float(value) for value in sums]


ALONE: Final = ProcessGroup()
"""The group of a process that trains alone."""


def join(store: Store) -> ProcessGroup:
    """Join the group that torchrun's environment variables describe, and use this process's GPU, if it sees any."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(
        "nccl" if cuda else "gloo", store=store, rank=rank, world_size=processes, timeout=TIMEOUT
    )
    cpu_group: Any = distributed.new_group(backend="gloo", timeout=TIMEOUT) if cuda else None
    return ProcessGroup(
        rank,
        processes,
        int(os.environ["GROUP_RANK"]),
        int(os.environ["GROUP_WORLD_SIZE"]),
        cpu_group,
    )
