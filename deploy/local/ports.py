"""Choose free ports on the loopback interface.

A chosen port is free until its server binds it, so another stack could choose the same one and then use the wrong
broker. Therefore a process reserves the ports it chooses: it locks one byte per port in a file that all of the user's
stacks share. The kernel releases these locks when the process ends.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
from collections.abc import Mapping
from functools import cache

from deploy.local.atomic_dirs import private_folder
from deploy.local.errors import StackError

HOST = "127.0.0.1"
FALLBACK_PORTS = range(15000, 30000)
"""Below the range of ephemeral ports, so that no outgoing connection takes the port of a service that restarts."""


@cache
def _reservations() -> int:
    """Return the file with one byte per port. Closing any descriptor of it releases all locks of this process."""
    return os.open(private_folder("ports") / "chosen", os.O_RDWR | os.O_CREAT, 0o600)


def reserve(port: int) -> bool:
    """Reserve the port for this process; return False if another process of this user has reserved it."""
    try:
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except (BlockingIOError, PermissionError):
        return False
    return True


def claim(port: int) -> socket.socket | None:
    """Reserve the port and return a socket bound to it, or None if it is in use or reserved."""
    if not reserve(port):
        return None
    with socket.socket() as probe:
        probe.settimeout(0.2)
        # Some systems allow binding 127.0.0.1:p although another process listens on 0.0.0.0:p.
        if probe.connect_ex((HOST, port)) == 0:
            return None
    holder = socket.socket()
    # Servers set this too: a port with connections in TIME_WAIT counts as free.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((HOST, port))
        # With SO_REUSEADDR on both sides, only a listening socket prevents another bind.
        holder.listen(1)
    except OSError:
        holder.close()
        return None
    return holder


def choose_ports(preferred: Mapping[str, int]) -> dict[str, int]:
    """Return a different free port for each name: the preferred one if it is free. 0 means any port.

    Raises:
        StackError: if no free port was found.

    """
    holders: dict[str, socket.socket] = {}
    try:
        for name, port in preferred.items():
            holder = claim(port) if port else None
            for _ in range(200):
                holder = holder or claim(random.choice(FALLBACK_PORTS))
            if holder is None:
                raise StackError(f"no free port found on {HOST} for {name}")
            holders[name] = holder
        return {name: holder.getsockname()[1] for name, holder in holders.items()}
    finally:
        for holder in holders.values():
            holder.close()
