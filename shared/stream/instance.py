"""Identity of an engine's process: the name of its stores, and its `transactional.id`.

Of two processes with one `transactional.id`, the later one fences the earlier. So a process claims its identity by a
lock on a file in the data folder, which the kernel releases when the process ends, however it ends. A restarted process
gets the same identity again, and so settles the transaction that its predecessor left open.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import Misconfigured

AUTO: Final = "auto"
"""Setting with which a process claims the lowest free number."""
INSTANCE_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"
MAX_SLOTS: Final = 256
_TOKEN: Final = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Instance:
    """A claimed identity. It is held until `release`, or until the process ends.

    Attributes:
        name: Name of the process among those that share the data folder; its stores are named after it.
        identity: Name of the process in the whole deployment, for the `transactional.id`.
        lock: Descriptor of the locked file. As a number, it stays open although nothing refers to it.

    """

    name: str
    identity: str
    lock: int

    def release(self) -> None:
        """Give up the identity. Another process may claim it at once."""
        os.close(self.lock)


def claim_instance(folder: Path, wanted: str = AUTO) -> Instance:
    """Claim the instance `wanted`, or with "auto" the lowest number that no other process holds.

    The identity contains the host's name, and a random part that is stored in the lock's file: neither two hosts nor
    two data folders on one host ever share it, also if one was copied from the other.

    Raises:
        Misconfigured: `wanted` is taken, or the folder cannot be locked.

    """
    names = [str(number) for number in range(MAX_SLOTS)] if wanted == AUTO else [wanted]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            lock = _lock(folder / f"{name}.lock")
            if lock is not None:
                return Instance(name, f"{socket.gethostname()}-{_token(lock)}-{name}", lock)
    except OSError as error:
        raise Misconfigured(
            f"cannot claim an instance in {folder}: {error.strerror}. The data folder (LOOPWRIGHT_DATA_DIR) must be "
            "writable, and on a disk that supports file locks."
        ) from error
    if wanted == AUTO:
        raise Misconfigured(
            f"all {MAX_SLOTS} instances in {folder} are taken: stop processes that are not needed."
        )
    raise Misconfigured(
        f"instance {wanted!r} is taken by process {_holder(folder / f'{wanted}.lock')} in {folder}: stop that process, "
        "choose another name, or leave the instance at `auto`."
    )


def _lock(path: Path) -> int | None:
    """Open and lock a file, and return its descriptor. Return None if another process has locked it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def _token(lock: int) -> str:
    """Return the random part of the identity. It is written with the first claim; the process id with every one."""
    stored = os.pread(lock, 8, 0).decode(errors="replace")
    token = stored if _TOKEN.fullmatch(stored) else secrets.token_hex(4)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{token} {os.getpid()}\n".encode(), 0)
    return token


def _holder(path: Path) -> str:
    try:
        return path.read_text().split()[1]
    except (OSError, IndexError, UnicodeDecodeError):
        return "(unknown)"
