"""The local stack: Kafka, Redis and the services as one thing that starts and stops."""

from __future__ import annotations

import http.client
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from deploy.local.errors import StackError
from deploy.local.kafka import prepare_kafka, wait_for_kafka
from deploy.local.kafka_jars import ensure_jars
from deploy.local.model import base_answers_env, ensure_base_model
from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import Program, tail
from deploy.local.redis import prepare_redis, wait_for_redis
from deploy.local.services import (
    ERASURE_TOKEN,
    REPOSITORY,
    SERVICES,
    port_setting,
    service_environment,
    torch_tuning,
    wanted_port,
)
from deploy.local.state_file import Ownership, erase_record, erasure_token, pseudonym_key, write_record
from deploy.local.supervisord import Supervision

Progress = Callable[[str], None]
TOPICS = "topics"
START_SECONDS = 90


def silent(_: str) -> None:
    """No progress wanted."""


class LocalStack:
    """Kafka, Redis and services on this machine; a context manager that is entered ready and left stopped.

    `root` holds everything the stack writes. `prepared` holds Kafka's jars and the base model (default: `root`);
    stacks with roots of their own may share it. `env` is added to the services' environment and has the last
    word. KAFKA_BOOTSTRAP_SERVERS and REDIS_URL, in `env` or in this process's environment, replace the stack's own
    servers. `base_model` (a folder or a Hugging Face id) goes before LOOPWRIGHT_BASE_MODEL, and that before the
    prepared one. `commands` replaces the command of a program (a service, or `topics`, the job that runs first).
    `progress` is called with a line for each step.

    All methods raise `StackError` with what to do. The processes die with this one, however it ends.
    """

    def __init__(
        self,
        root: Path = Path(".loopwright"),
        services: Sequence[str] = SERVICES,
        env: Mapping[str, str] | None = None,
        base_model: Path | str | None = None,
        *,
        prepared: Path | None = None,
        commands: Mapping[str, Sequence[str]] | None = None,
        progress: Progress = silent,
    ) -> None:
        self.root = root.resolve()
        self.services = tuple(services)
        self.prepared = (prepared or root).resolve()
        self.urls: dict[str, str] = {}
        """Kafka's bootstrap servers, Redis's URL, and a base URL for each service, from `start` on."""
        self._env = dict(env or {})
        self._base_model = base_model
        self._commands = dict(commands or {})
        self._ownership = Ownership(self.root)
        self._supervision: Supervision | None = None
        self._own_servers: list[str] = []
        self._progress = progress

    # -- life ------------------------------------------------------------------------------------------------

    def start(self, progress: Progress | None = None) -> None:
        """Prepare what is missing, choose ports, start everything. Services may still be loading afterwards."""
        self._progress = progress or self._progress
        self._ownership.take()
        try:
            programs = self._plan()
            supervision = Supervision(self.root / "run", programs)
            supervision.open()
            self._supervision = supervision
            self._write_record("starting")
            self._start_servers()
            self._make_topics()
            for service in self.services:
                self._running.launch(service)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the services, then Redis, then Kafka. Calling it again does nothing."""
        try:
            if self._supervision is not None and self._supervision.alive:
                self._progress("stopping")
                self._supervision.halt(list(reversed(self.services)))
        finally:
            if self._supervision is not None:
                self._supervision.close()
                self._supervision = None
                erase_record(self.root)
            self._ownership.release()

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- looking and handling --------------------------------------------------------------------------------

    def pid_of(self, service: str) -> int:
        """The process of a running program (a service, `kafka` or `redis`)."""
        standing = self._running.standings().get(service)
        if standing is None or standing.pid == 0:
            raise StackError(f"{service} does not run" + (f" ({standing.state})" if standing else ""))
        return standing.pid

    def log_of(self, service: str) -> Path:
        """The file with what a program prints."""
        return self._running.log_of(service)

    def restart(self, service: str) -> None:
        """Stop a service in order and start it again; `wait_ready` says when it is back."""
        self._running.halt([service])
        self._running.launch(service)

    def wait_ready(self, timeout: float = 240, services: Sequence[str] | None = None) -> None:
        """Wait until these services (default: all) answer 200 on /readyz.

        Raises:
            StackError: one gave up starting, or time ran out: what each of them misses and the end of its log.

        """
        waiting = dict.fromkeys(self.services if services is None else services, "")
        deadline = time.monotonic() + timeout
        while True:
            standings = self._running.standings()
            given_up = [service for service in waiting if standings[service].state == "FATAL"]
            for service in list(waiting):
                missing = missing_of(self.urls[service])
                if missing is None and standings[service].state == "RUNNING":
                    del waiting[service]
                    self._progress(f"{service}: ready on {self.urls[service]}")
                else:
                    waiting[service] = missing or "starting"
            if not waiting:
                self._write_record("ready")
                return
            if given_up or time.monotonic() > deadline:
                raise StackError(self._why_not(waiting, timeout))
            time.sleep(0.2)

    def _why_not(self, waiting: Mapping[str, str], timeout: float) -> str:
        standings = self._running.standings()
        parts = [f"not ready after {timeout:.0f} s: {', '.join(waiting)}"]
        for service, missing in waiting.items():
            log = self.log_of(service)
            parts.append(
                f"--- {service} ({standings[service].state}): {missing}\n{tail(log)}\n    (more in {log})"
            )
        return "\n".join(parts)

    # -- the parts of a start --------------------------------------------------------------------------------

    @property
    def _running(self) -> Supervision:
        if self._supervision is None:
            raise StackError("the stack does not run")
        return self._supervision

    def _setting(self, name: str) -> str:
        return self._env.get(name) or os.environ.get(name, "")

    def _plan(self) -> list[Program]:
        """Prepare what is missing, choose addresses, and say what is to run, in the order of starting."""
        kafka, redis = self._setting("KAFKA_BOOTSTRAP_SERVERS"), self._setting("REDIS_URL")
        settings = {**os.environ, **self._env}
        wanted = {service: wanted_port(service, settings) for service in self.services}
        wanted |= {} if kafka else {"kafka": 9092, "controller": 0}
        wanted |= {} if redis else {"redis": 6379}
        libs = None if kafka else ensure_jars(self.prepared / "kafka", self._progress)
        base_model = self._base()
        ports = choose_ports(wanted)
        for name, port in ports.items():
            if wanted[name] not in {0, port}:
                self._progress(f"{name}: port {wanted[name]} is taken, using {port}")
        programs = []
        data = self.root / "data"
        if libs:
            kafka = f"{HOST}:{ports['kafka']}"
            programs.append(
                prepare_kafka(
                    libs=libs, data=data / "kafka", port=ports["kafka"], controller_port=ports["controller"]
                )
            )
        if not redis:
            redis = f"redis://{HOST}:{ports['redis']}/0"
            programs.append(prepare_redis(data=data / "redis", port=ports["redis"]))
        self._own_servers = [program.name for program in programs]
        service_ports = {service: ports[service] for service in self.services}
        self.urls = {"kafka": kafka, "redis": redis}
        self.urls |= {service: f"http://{HOST}:{port}" for service, port in service_ports.items()}
        told = service_environment(
            root=self.root,
            kafka=kafka,
            redis=redis,
            base_model=base_model,
            key=self._setting("LOOPWRIGHT_PSEUDONYM_KEY") or pseudonym_key(self.root),
            ports=service_ports,
        )
        told |= base_answers_env(self.prepared, base_model)
        programs.append(self._program(TOPICS, "shared.adapters.topic_admin", told, once=True))
        programs += [self._program(name, f"services.{name}", told) for name in self.services]
        return programs

    def _program(self, name: str, module: str, told: Mapping[str, str], *, once: bool = False) -> Program:
        argv = self._commands.get(name, [sys.executable, "-m", module])
        # These went into what is told; the port that was asked for may have been taken.
        settled = {"LOOPWRIGHT_BASE_MODEL", *(port_setting(service) for service in self.services)}
        asked = {key: text for key, text in self._env.items() if key not in settled}
        own = {ERASURE_TOKEN: self._erasure_token()} if name == "feedback" else {}
        return Program(name, argv, {**torch_tuning(name), **told, **own, **asked}, cwd=REPOSITORY, once=once)

    def _erasure_token(self) -> str:
        return self._setting(ERASURE_TOKEN) or erasure_token(self.root)

    def _base(self) -> str:
        """The base model as the services are told it: an absolute folder or a Hugging Face id."""
        given = str(self._base_model or "") or self._setting("LOOPWRIGHT_BASE_MODEL")
        if given:
            return str(Path(given).resolve()) if Path(given).is_dir() else given
        return str(ensure_base_model(self.prepared, self._progress))

    def _start_servers(self) -> None:
        """Start our own Kafka and Redis; wait for them, and for those of others."""
        for name in self._own_servers:
            self._running.launch(name)
        for name, wait in (("kafka", wait_for_kafka), ("redis", wait_for_redis)):
            own = name in self._own_servers
            if wait(self.urls[name], seconds=START_SECONDS if own else 15):
                self._progress(f"{name}: ready on {self.urls[name]}")
            elif own:
                raise StackError(f"{name} did not start:\n{tail(self.log_of(name))}")
            else:
                variable = {"kafka": "KAFKA_BOOTSTRAP_SERVERS", "redis": "REDIS_URL"}[name]
                raise StackError(f"nothing answers at {variable}={self.urls[name]}: correct or unset it.")

    def _make_topics(self) -> None:
        """Run the topics job to its end."""
        self._running.launch(TOPICS)
        deadline = time.monotonic() + START_SECONDS
        while (standing := self._running.standings()[TOPICS]).state != "EXITED":
            if standing.state == "FATAL" or time.monotonic() > deadline:
                raise StackError(f"the topics job did not end:\n{tail(self.log_of(TOPICS))}")
            time.sleep(0.1)
        if standing.exit_status != 0:
            raise StackError(f"the topics could not be made:\n{tail(self.log_of(TOPICS))}")
        self._progress("topics: ready")

    def _write_record(self, state: str) -> None:
        pids = {name: standing.pid for name, standing in self._running.standings().items() if standing.pid}
        facts = {
            "state": state,
            "owner": os.getpid(),
            **self.urls,
            "pids": pids,
            "logs": str(self._running.logs),
        }
        write_record(self.root, facts)


def missing_of(url: str) -> str | None:
    """What a service says it still misses; None if it is ready."""
    connection = http.client.HTTPConnection(HOST, urlsplit(url).port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(2000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        return "does not answer yet"
    finally:
        connection.close()
    return None if response.status == 200 else f"{response.status} {body}"
