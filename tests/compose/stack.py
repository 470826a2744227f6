"""One deployment of docker-compose.yml with its own project name, secrets and ports."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.compose.engine import ROOT, interrupts_ignored
from tests.compose.progress import report

POLL_SECONDS = 2.0
LOG_LINES = "60"
GOOD = {"healthy", "completed"}
SERVICES = ("inference", "feedback", "processor", "rollout", "trainer", "console")


class StackFailedError(RuntimeError):
    """A deployment failed. `services` are those whose logs show why."""

    def __init__(self, message: str, services: list[str] | None = None) -> None:
        super().__init__(message)
        self.services = services or []


class Stack:
    """A compose project. `folder` gets its environment file, which ends with `settings`."""

    def __init__(
        self, case: str, engine: Mapping[str, str], folder: Path, settings: Mapping[str, str]
    ) -> None:
        self.project = f"loopwright-test-{case}-{secrets.token_hex(3)}"
        self.ports = free_ports()
        self._env = without_overrides(engine)
        self._env_file = environment_file(folder)
        ports = {f"LOOPWRIGHT_{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        with self._env_file.open("a") as file:
            file.writelines(f"{name}={value}\n" for name, value in {**ports, **settings}.items())

    @contextmanager
    def removed_afterwards(self) -> Iterator[None]:
        """Remove containers, volumes and built images at the end of the block; print logs if it failed."""
        try:
            yield
        except StackFailedError as error:
            report(f"{self.project}: FAILED: {error}")
            for service in error.services:
                report(f"{self.project}: the last lines of {service}'s log:")
                self.compose("logs", "--no-color", "--no-log-prefix", "--tail", LOG_LINES, service)
            raise
        finally:
            report(f"{self.project}: docker compose down -v")
            with interrupts_ignored():
                command = self._command("down", "--volumes", "--rmi", "local")
                # In a new session, because Compose does not ignore the terminal's interrupt.
                subprocess.run(command, cwd=ROOT, env=self._env, check=False, start_new_session=True)

    def start(self, seconds: float) -> None:
        """Run `docker compose up -d`; return when all services are healthy and all jobs have ended with 0.

        `up --wait` is of no use: some releases of Compose count a finished job as a failure.
        """
        expected = set(self._output("config", "--services").split())
        try:
            self.compose("up", "-d")
        except StackFailedError as error:
            raise self._failure(str(error)) from None
        deadline = time.monotonic() + seconds
        while set(states := self.states()) != expected or not set(states.values()) <= GOOD:
            if any(state.startswith("exited with") for state in states.values()):
                raise self._failure("something ended")
            if time.monotonic() > deadline:
                raise self._failure(f"not everything is healthy after {seconds:.0f} s")
            time.sleep(POLL_SECONDS)

    def states(self) -> dict[str, str]:
        """Return each service's state (see `state_of`)."""
        ids = self._output("ps", "--all", "--quiet").split()
        if not ids:
            return {}
        command = ["docker", "inspect", *ids]
        output = subprocess.run(command, env=self._env, stdout=subprocess.PIPE, text=True, check=True).stdout
        containers: list[dict[str, Any]] = json.loads(output)
        return {
            container["Config"]["Labels"]["com.docker.compose.service"]: state_of(container)
            for container in containers
        }

    def last_line(self, service: str) -> str:
        """Return the last line of a service's log."""
        lines = self._output("logs", "--no-color", "--no-log-prefix", service).strip().splitlines()
        return lines[-1] if lines else ""

    def compose(self, *arguments: str) -> None:
        """Run `docker compose` in this project; its output goes to the terminal. Raises `StackFailedError`."""
        command = self._command(*arguments)
        status = subprocess.run(command, cwd=ROOT, env=self._env, check=False).returncode
        if status != 0:
            raise StackFailedError(f"`docker compose {' '.join(arguments)}` failed with {status}")

    def _failure(self, message: str) -> StackFailedError:
        """Return the error that names the services to blame: those that failed, or else those not ready yet."""
        states = sorted((name, state) for name, state in self.states().items() if state not in GOOD)
        failed = [(name, state) for name, state in states if state not in {"created", "starting"}]
        blamed = failed or states
        shown = ", ".join(f"{name} is {state}" for name, state in blamed)
        return StackFailedError(f"{message}: {shown}", [name for name, _ in blamed])

    def _output(self, *arguments: str) -> str:
        command = self._command(*arguments)
        done = subprocess.run(
            command, cwd=ROOT, env=self._env, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            raise StackFailedError(f"`docker compose {' '.join(arguments)}` failed with {done.returncode}")
        return done.stdout

    def _command(self, *arguments: str) -> list[str]:
        project = ["--project-name", self.project, "--file", str(ROOT / "docker-compose.yml")]
        options = ["--env-file", str(self._env_file), "--progress", "quiet"]
        return ["docker", "compose", *project, *options, *arguments]


def state_of(container: Mapping[str, Any]) -> str:
    """Return `completed` (exited with 0), `exited with N`, or else the health or status in `docker inspect`."""
    state = container["State"]
    if state["Status"] == "exited":
        return "completed" if state["ExitCode"] == 0 else f"exited with {state['ExitCode']}"
    if state["Status"] == "running" and "Health" in state:
        return str(state["Health"]["Status"])
    return str(state["Status"])


def environment_file(folder: Path) -> Path:
    """Write a `.env` with new secrets below `folder`, by the script of `make env`."""
    (folder / "deploy/docker").mkdir(parents=True)
    script = shutil.copy(ROOT / "deploy/docker/env.sh", folder / "deploy/docker")
    shutil.copy(ROOT / ".env.example", folder)
    subprocess.run(["sh", script], check=True, stdout=subprocess.DEVNULL)
    return folder / ".env"


def without_overrides(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that would override the environment file.

    TORCH_BACKEND stays: it is how a caller chooses the PyTorch to build with.
    """
    read = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text())) - {"TORCH_BACKEND"}
    return {
        name: value for name, value in env.items() if name not in read and not name.startswith("COMPOSE_")
    }


def free_ports() -> dict[str, int]:
    """Return a free port of this machine for each published service."""
    with ExitStack() as sockets:
        held = {name: sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for name in SERVICES}
        return {name: listening.getsockname()[1] for name, listening in held.items()}
