"""Run a service as a process, as a deployment does, with a real Kafka and Redis."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import httpx
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import Program, spawn, tail, terminate

ROOT = Path(__file__).resolve().parents[2]
START_S = 60


@dataclass(frozen=True)
class Service:
    """A running service: an HTTP client for it, its process and its log."""

    http: httpx.Client
    child: Popen[bytes]
    log: Path


@contextmanager
def running(name: str, folder: Path, env: Mapping[str, str], start_s: float = START_S) -> Iterator[Service]:
    """Run `python -m services.<name>`; yield it once it is ready, stop it afterwards."""
    port = choose_ports({name: 0})[name]
    program = Program(
        name=name,
        argv=[sys.executable, "-m", f"services.{name}"],
        env={f"LOOPWRIGHT_{name.upper()}_PORT": str(port), **env},
        cwd=ROOT,
    )
    log = folder / f"{name}.log"
    child = spawn(program, folder=folder, log=log)
    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=20) as http:
        try:
            waiting = Retrying(
                stop=stop_after_delay(start_s),
                wait=wait_fixed(0.1),
                retry=retry_if_result(lambda ready: not ready),
                retry_error_callback=lambda _: False,
            )
            assert waiting(_is_ready, http, child), (
                f"{name} did not become ready: {_problems(http)}\n{tail(log, 40)}"
            )
            yield Service(http, child, log)
        finally:
            terminate(child, seconds=20)


def _is_ready(http: httpx.Client, child: Popen[bytes]) -> bool:
    assert child.poll() is None, "the service ended"
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _problems(http: httpx.Client) -> str:
    try:
        return http.get("/readyz").text
    except httpx.TransportError as error:
        return str(error)
