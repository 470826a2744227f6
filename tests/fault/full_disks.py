"""Small disks that tests can fill to the last byte."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CAP_SYS_ADMIN = 1 << 21
"""Bit of the Linux capability that mounting needs."""


def can_mount() -> bool:
    """Return whether this process may mount file systems."""
    status = Path("/proc/self/status")
    lines = (
        [line for line in status.read_text().splitlines() if line.startswith("CapEff:")]
        if status.exists()
        else []
    )
    return bool(lines and int(lines[0].split()[1], 16) & CAP_SYS_ADMIN)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """Mount a file system of this size in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def fill_disk(path: Path) -> Iterator[None]:
    """Fill the file system that holds `path`, until the block ends."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    yield
    path.unlink()
