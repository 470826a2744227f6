"""Start and stop Kafka, Redis and the services on this machine."""

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
    REPOSITORY,
    SERVICES,
    TOKEN_KEY,
    port_setting,
    preferred_port,
    service_environment,
    torch_tuning,
)
from deploy.local.state_file import StackLock, delete_state, pseudonym_key, token_key, write_state
from deploy.local.supervisord import Supervisord
from shared.kafka_connection import KafkaConnection, KafkaProperties

Progress = Callable[[str], None]
TOPICS = "topics"
KAFKA_CONFIG = "LOOPWRIGHT_KAFKA_CONFIG"
START_SECONDS = 90


def ignore_progress(_: str) -> None:
    """Discard a line of progress."""


class LocalStack:
    """Kafka, Redis and the services as processes of this machine.

    As a context manager it is ready inside the block and stopped after it. If KAFKA_BOOTSTRAP_SERVERS or REDIS_URL is
    set, in `env` or in this process's environment, that server is used instead of a new one. The processes die with
    this process, however it ends. All methods raise `StackError` with cause and remedy.

    Args:
        root: Folder for everything that the stack writes.
        services: Names of the services to start.
        env: Variables for the services; they override all others.
        base_model: Model folder or Hugging Face id. Default: LOOPWRIGHT_BASE_MODEL, else the prepared model.
        prepared: Folder with Kafka's jars and the base model, which several stacks may share. Default: `root`.
        commands: Commands that replace a program's own (a service, or `topics`, the job that runs first).
        progress: Called with one line per step.

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
        progress: Progress = ignore_progress,
    ) -> None:
        self.root = root.resolve()
        self.services = tuple(services)
        self.prepared = (prepared or root).resolve()
        self.urls: dict[str, str] = {}
        """Kafka's bootstrap servers, Redis's URL and each service's base URL; set by `start`."""
        self._env = dict(env or {})
        self._base_model = base_model
        self._commands = dict(commands or {})
        self._lock = StackLock(self.root)
        self._supervisord: Supervisord | None = None
        self._own_servers: list[str] = []
        self._progress = progress

    # -- start and stop --------------------------------------------------------------------------------------

    def start(self, progress: Progress | None = None) -> None:
        """Download what is missing, choose ports and start all programs. Does not wait until the services are ready."""
        self._progress = progress or self._progress
        self._lock.acquire()
        try:
            programs = self._plan()
            supervisord = Supervisord(self.root / "run", programs)
            supervisord.open()
            self._supervisord = supervisord
            self._write_state("starting")
            self._start_servers()
            self._create_topics()
            for service in self.services:
                self._running.start_program(service)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the services, then Redis, then Kafka. Idempotent."""
        try:
            if self._supervisord is not None and self._supervisord.alive:
                self._progress("stopping")
                self._supervisord.stop_programs(list(reversed(self.services)))
        finally:
            if self._supervisord is not None:
                self._supervisord.close()
                self._supervisord = None
                delete_state(self.root)
            self._lock.release()

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

    # -- inspection and control ------------------------------------------------------------------------------

    def pid_of(self, service: str) -> int:
        """Return the pid of a running program (a service, `kafka` or `redis`)."""
        status = self._running.statuses().get(service)
        if status is None or status.pid == 0:
            raise StackError(f"{service} is not running" + (f" ({status.state})" if status else ""))
        return status.pid

    def log_of(self, service: str) -> Path:
        """Return the path of a program's log."""
        return self._running.log_of(service)

    def restart(self, service: str) -> None:
        """Stop a service and start it again without waiting; `wait_ready` waits for it."""
        self._running.stop_programs([service])
        self._running.start_program(service)

    def wait_ready(self, timeout: float = 240, services: Sequence[str] | None = None) -> None:
        """Wait until these services (default: all) answer /readyz with 200.

        Raises:
            StackError: if a service keeps failing to start or is not ready after `timeout` seconds; with the reason
                and the end of its log.

        """
        waiting = dict.fromkeys(self.services if services is None else services, "")
        deadline = time.monotonic() + timeout
        while True:
            statuses = self._running.statuses()
            failed = [service for service in waiting if statuses[service].state == "FATAL"]
            for service in list(waiting):
                reason = not_ready_reason(self.urls[service])
                if reason is None and statuses[service].state == "RUNNING":
                    del waiting[service]
                    self._progress(f"{service}: ready on {self.urls[service]}")
                else:
                    waiting[service] = reason or "starting"
            if not waiting:
                self._write_state("ready")
                return
            if failed or time.monotonic() > deadline:
                raise StackError(self._not_ready_message(waiting, timeout))
            time.sleep(0.2)

    def _not_ready_message(self, waiting: Mapping[str, str], timeout: float) -> str:
        statuses = self._running.statuses()
        parts = [f"not ready after {timeout:.0f} s: {', '.join(waiting)}"]
        for service, reason in waiting.items():
            log = self.log_of(service)
            parts.append(
                f"--- {service} ({statuses[service].state}): {reason}\n{tail(log)}\n    (full log: {log})"
            )
        return "\n".join(parts)

    # -- steps of a start ------------------------------------------------------------------------------------

    @property
    def _running(self) -> Supervisord:
        if self._supervisord is None:
            raise StackError("the stack is not running")
        return self._supervisord

    def _setting(self, name: str) -> str:
        return self._env.get(name) or os.environ.get(name, "")

    def _plan(self) -> list[Program]:
        """Download what is missing, choose addresses and return the programs in the order of starting."""
        kafka, redis = self._setting("KAFKA_BOOTSTRAP_SERVERS"), self._setting("REDIS_URL")
        if self._setting(KAFKA_CONFIG) and not kafka:
            raise StackError(
                f"{KAFKA_CONFIG} is set, but KAFKA_BOOTSTRAP_SERVERS is not. The stack's own Kafka needs no "
                f"configuration: set both, or unset {KAFKA_CONFIG}."
            )
        settings = {**os.environ, **self._env}
        preferred = {service: preferred_port(service, settings) for service in self.services}
        preferred |= {} if kafka else {"kafka": 9092, "controller": 0}
        preferred |= {} if redis else {"redis": 6379}
        libs = None if kafka else ensure_jars(self.prepared / "kafka", self._progress)
        base_model = self._resolve_base_model()
        ports = choose_ports(preferred)
        for name, port in ports.items():
            if preferred[name] not in {0, port}:
                self._progress(f"{name}: port {preferred[name]} is in use, using {port}")
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
        env = service_environment(
            root=self.root,
            kafka=kafka,
            redis=redis,
            base_model=base_model,
            key=self._setting("LOOPWRIGHT_PSEUDONYM_KEY") or pseudonym_key(self.root),
            ports=service_ports,
        )
        env |= base_answers_env(self.prepared, base_model)
        programs.append(self._program(TOPICS, "shared.adapters.topic_admin", env, once=True))
        programs += [self._program(name, f"services.{name}", env) for name in self.services]
        return programs

    def _program(self, name: str, module: str, env: Mapping[str, str], *, once: bool = False) -> Program:
        argv = self._commands.get(name, [sys.executable, "-m", module])
        # `env` has the resolved values of these variables: another port may have been chosen.
        resolved = {"LOOPWRIGHT_BASE_MODEL", *(port_setting(service) for service in self.services)}
        overrides = {key: text for key, text in self._env.items() if key not in resolved}
        secrets = {TOKEN_KEY: self._setting(TOKEN_KEY) or token_key(self.root)} if name == "feedback" else {}
        return Program(
            name, argv, {**torch_tuning(name), **env, **secrets, **overrides}, cwd=REPOSITORY, once=once
        )

    def _resolve_base_model(self) -> str:
        """Return the base model for the services: an absolute folder or a Hugging Face id."""
        model = str(self._base_model or "") or self._setting("LOOPWRIGHT_BASE_MODEL")
        if model:
            return str(Path(model).resolve()) if Path(model).is_dir() else model
        return str(ensure_base_model(self.prepared, self._progress))

    def _start_servers(self) -> None:
        """Start Kafka and Redis unless others are configured; wait until both answer."""
        for name in self._own_servers:
            self._running.start_program(name)
        kafka = self._kafka_connection()
        for name in ("kafka", "redis"):
            own = name in self._own_servers
            seconds = START_SECONDS if own else 15
            ready = (
                wait_for_kafka(kafka, seconds=seconds)
                if name == "kafka"
                else wait_for_redis(self.urls["redis"], seconds=seconds)
            )
            if ready:
                self._progress(f"{name}: ready on {self.urls[name]}")
            elif own:
                raise StackError(f"{name} did not start:\n{tail(self.log_of(name))}")
            else:
                variable = {"kafka": "KAFKA_BOOTSTRAP_SERVERS", "redis": "REDIS_URL"}[name]
                raise StackError(
                    f"no {name} answers at {variable}={self.urls[name]}. Correct or unset {variable}."
                )

    def _kafka_connection(self) -> KafkaConnection:
        """Return how the services reach Kafka. The stack's own broker takes no properties."""
        try:
            properties = KafkaProperties.parse(self._setting(KAFKA_CONFIG))
        except ValueError as error:
            raise StackError(f"{KAFKA_CONFIG}: {error}") from error
        return KafkaConnection(self.urls["kafka"], self._setting("LOOPWRIGHT_NAMESPACE"), properties)

    def _create_topics(self) -> None:
        """Run the topics job and wait for its end."""
        self._running.start_program(TOPICS)
        deadline = time.monotonic() + START_SECONDS
        while (status := self._running.statuses()[TOPICS]).state != "EXITED":
            if status.state == "FATAL" or time.monotonic() > deadline:
                raise StackError(f"the topics job did not finish:\n{tail(self.log_of(TOPICS))}")
            time.sleep(0.1)
        if status.exit_status != 0:
            raise StackError(f"the topics could not be created:\n{tail(self.log_of(TOPICS))}")
        self._progress("topics: ready")

    def _write_state(self, state: str) -> None:
        pids = {name: status.pid for name, status in self._running.statuses().items() if status.pid}
        facts = {
            "state": state,
            "owner": os.getpid(),
            **self.urls,
            "pids": pids,
            "logs": str(self._running.logs),
        }
        write_state(self.root, facts)


def not_ready_reason(url: str) -> str | None:
    """Return why a service is not ready, or None if it is."""
    connection = http.client.HTTPConnection(HOST, urlsplit(url).port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(2000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        return "no response yet"
    finally:
        connection.close()
    return None if response.status == 200 else f"{response.status} {body}"
