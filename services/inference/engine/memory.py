"""Free memory of the device that computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

MEMINFO: Final = Path("/proc/meminfo")
CGROUP: Final = Path("/sys/fs/cgroup")
CGROUPS: Final = (
    (CGROUP / "memory.max", CGROUP / "memory.current", CGROUP / "memory.stat"),
    (
        CGROUP / "memory" / "memory.limit_in_bytes",
        CGROUP / "memory" / "memory.usage_in_bytes",
        CGROUP / "memory" / "memory.stat",
    ),
)
"""A container's memory limit, its use and its statistics, in cgroup v2 and v1."""
UNKNOWN: Final = 4 << 30
"""Assumed free memory where the system does not report it, in bytes."""
_AVAILABLE: Final = re.compile(r"^MemAvailable:\s+(\d+) kB", re.MULTILINE)
_FILE_CACHE: Final = re.compile(r"^(?:total_)?inactive_file (\d+)$", re.MULTILINE)


def free_bytes(device: str) -> int:
    """Return the memory that this process can still take on `cpu` or `cuda`, in bytes."""
    if device != "cpu":
        import torch  # noqa: PLC0415 - only where there is a GPU

        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    available = _AVAILABLE.search(MEMINFO.read_text()) if MEMINFO.exists() else None
    free = int(available.group(1)) << 10 if available else UNKNOWN
    return min([free, *(left for left in map(_left, CGROUPS) if left is not None)])


def _left(files: tuple[Path, Path, Path]) -> int | None:
    """Return what a container's limit leaves, or None if it has none. The kernel's file cache counts as free."""
    limit, use, statistics = files
    if not limit.exists() or not limit.read_text().strip().isdecimal():
        return None
    cached = max(map(int, _FILE_CACHE.findall(statistics.read_text())), default=0)
    return max(0, int(limit.read_text()) - int(use.read_text()) + cached)
