"""The Docker engine of the compose test: a running one, or one that a tool starts for the test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.compose.progress import report

ROOT = Path(__file__).resolve().parents[2]


class EngineMissingError(RuntimeError):
    """No Docker engine runs here and none can be started. The message names the cause."""


@contextmanager
def docker_engine(tool: Path) -> Iterator[dict[str, str]]:
    """Yield an environment in which `docker` and `docker compose` work.

    If no engine runs, `tool start` starts one, and `tool image NAME KIND` makes the images that it cannot pull. That
    engine is stopped at the end.

    Raises:
        EngineMissingError: no engine runs, and the tool is missing or cannot start one.

    """
    reason = unusable(os.environ)
    if reason is None:
        report("engine: using the running one")
        yield dict(os.environ)
        return
    if not tool.is_file():
        raise EngineMissingError(f"{reason}, and there is no {tool} to start an engine with")
    report(f"engine: {reason}; starting one with {tool} (some minutes the first time)")
    env: dict[str, str] = {}
    try:
        env = start(tool)
        make_images(tool, env)
        yield env
    finally:
        with interrupts_ignored():
            stop(tool, env)


def unusable(env: Mapping[str, str]) -> str | None:
    """Return why Docker cannot be used in this environment, or None if it can."""
    for command in ("docker info", "docker compose version"):
        try:
            done = subprocess.run(
                command.split(), env=env, capture_output=True, text=True, check=False, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"`{command}` does not work ({error})"
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return f"`{command}` does not work ({lines[0]})"
    return None


def start(tool: Path) -> dict[str, str]:
    """Start an engine and return the environment that reaches it; the tool prints that as `export` lines."""
    started = subprocess.run([tool, "start"], stdout=subprocess.PIPE, text=True, check=False)
    if started.returncode != 0:
        raise EngineMissingError(f"`{tool} start` failed with {started.returncode}; its messages are above")
    command = ["bash", "-c", 'eval "$1" && exec env -0', "bash", started.stdout]
    pairs = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\0")
    env = dict(pair.split("=", 1) for pair in pairs if pair)
    if reason := unusable(env):
        raise EngineMissingError(f"`{tool} start` did not start a usable engine: {reason}")
    return env


def stop(tool: Path, env: Mapping[str, str]) -> None:
    """Stop the engine that the tool started, unless other containers run on it."""
    if env:
        running = subprocess.run(
            ["docker", "ps", "--quiet"], env=env, stdout=subprocess.PIPE, text=True, check=False
        )
        if running.stdout.strip():
            report("engine: left running, because other containers run on it")
            return
    subprocess.run([tool, "stop"], check=False)


def make_images(tool: Path, env: Mapping[str, str]) -> None:
    """Make a stand-in for every base image that the engine lacks.

    The tool's kinds are the images' short names: `kafka` for `apache/kafka:4.3.1`.
    """
    for image in base_images():
        inspect = ["docker", "image", "inspect", image]
        if subprocess.run(inspect, env=env, capture_output=True, check=False).returncode != 0:
            kind = image.partition(":")[0].rpartition("/")[2]
            subprocess.run([tool, "image", image, kind], check=True)


def base_images() -> list[str]:
    """Return the images that docker-compose.yml and the Dockerfile name and do not build themselves."""
    compose = (ROOT / "docker-compose.yml").read_text()
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\S+)", dockerfile, re.MULTILINE)
    named = {*re.findall(r"^ +image: (\S+)", compose, re.MULTILINE), *(below for below, _ in stages)}
    return sorted(named - {name for _, name in stages})


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM while cleaning up."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
