"""Choosing ports on the loopback interface.

Whoever chooses a port lets go of it before its server binds it. In between another stack could choose the same one,
and each would take the other's broker for its own. So a port that a process has chosen stays that process's until it
ends: a byte of a file that all of a user's stacks share is locked for it, which the system undoes however it ends.
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
"""Below the range from which systems take the local ports of outgoing connections, so that a service which
was killed finds its port free when it comes back."""


@cache
def _reservations() -> int:
    """The file whose bytes stand for ports. Closing it anywhere in this process would undo all its locks."""
    return os.open(private_folder("ports") / "chosen", os.O_RDWR | os.O_CREAT, 0o600)


def reserve(port: int) -> bool:
    """Whether the port is this process's from now on; False if another process of this user has chosen it."""
    try:
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except (BlockingIOError, PermissionError):
        return False
    return True


def claim(port: int) -> socket.socket | None:
    """A socket bound to the port, or None if somebody has it or has chosen it."""
    if not reserve(port):
        return None
    with socket.socket() as probe:
        probe.settimeout(0.2)
        # Some systems let one bind 127.0.0.1:p while another listens on 0.0.0.0:p.
        if probe.connect_ex((HOST, port)) == 0:
            return None
    holder = socket.socket()
    # As servers do it: a port whose last connections are still in TIME_WAIT is free.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((HOST, port))
        # Only a listening socket keeps others off a port that both bound with SO_REUSEADDR.
        holder.listen(1)
    except OSError:
        holder.close()
        return None
    return holder


def choose_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """A port for each name: the wanted one if it is free, else another; 0 wants any. None is given twice."""
    held: dict[str, socket.socket] = {}
    try:
        for name, port in wanted.items():
            holder = claim(port) if port else None
            for _ in range(200):
                holder = holder or claim(random.choice(FALLBACK_PORTS))
            if holder is None:
                raise StackError(f"found no free port on {HOST} for {name}")
            held[name] = holder
        return {name: holder.getsockname()[1] for name, holder in held.items()}
    finally:
        for holder in held.values():
            holder.close()
