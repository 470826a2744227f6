"""Disks of a test's own that can be filled to the last byte."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAY_MOUNT = 1 << 21
"""CAP_SYS_ADMIN."""


def may_mount() -> bool:
    status = Path("/proc/self/status")
    found = (
        [line for line in status.read_text().splitlines() if line.startswith("CapEff:")]
        if status.exists()
        else []
    )
    return bool(found and int(found[0].split()[1], 16) & MAY_MOUNT)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """So large, in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def ballast(path: Path) -> Iterator[None]:
    """Full: not a byte is left where this file lies."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    yield
    path.unlink()
