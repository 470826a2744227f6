"""Entry point of the trainer: `python -m services.trainer`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Final, TypeVar

import structlog
from fastapi import FastAPI

from services.trainer.api.app import trainer_app
from services.trainer.api.lineage_routes import LineageQueries
from services.trainer.base.replay_prompt_file import read_replay_prompts
from services.trainer.consumer import TOPICS_READ
from services.trainer.database import lock_folder, open_database
from services.trainer.dataset import batch_table
from services.trainer.gate.golden import read_golden_set
from services.trainer.gate.harness import require_harness
from services.trainer.service import Trainer
from services.trainer.settings import TrainerSettings
from services.trainer.versions.publish import SERVICE, VersionLog, lease_group, transactional_id
from services.trainer.worker import launcher
from services.trainer.worker.base_check import remembered_check
from shared.adapters.access import Access
from shared.adapters.access_middleware import secure
from shared.adapters.artifacts import open_artifacts
from shared.adapters.base_model import PinnedBase, find_base
from shared.adapters.clock import SystemClock
from shared.adapters.group_lease import GroupLease
from shared.adapters.http import ServerThread
from shared.adapters.kafka import KafkaPublisher, KafkaTransactionalPublisher
from shared.adapters.redis import RedisCache
from shared.adapters.topic_admin import CheckedReaders, check_partitions
from shared.entry_point import run_service
from shared.errors import Fenced, LoopwrightError, Misconfigured, Retryable
from shared.telemetry import Readiness
from shared.topics import OPERATOR_COMMANDS

RETRY_S: Final = 1.0
BASE_CHECK: Final = "base-check.json"
"""File with the last check of the base that found no problem."""
T = TypeVar("T")
log = structlog.get_logger(__name__)


def build(settings: TrainerSettings, base: PinnedBase) -> Trainer:
    """Build the trainer with its real adapters. From then on, any other trainer of the line is fenced.

    Raises `Retryable` while Kafka cannot be reached or refuses what the trainer needs.
    """
    kafka = settings.kafka
    readers = CheckedReaders(kafka, SERVICE, settings.partitions)
    versions = VersionLog(
        settings.line,
        lambda topic: readers([topic]),
        lambda: KafkaTransactionalPublisher(kafka, SERVICE, transactional_id(settings.line)),
    )
    db = open_database(settings.folder)
    return Trainer(
        settings=settings,
        base=base,
        db=db,
        reader=readers(TOPICS_READ, batch_table.positions(db)),
        publisher=KafkaPublisher(kafka, SERVICE),
        versions=versions,
        store=open_artifacts(settings.artifacts, settings.artifact_cache),
        cache=RedisCache(settings.redis_url),
        clock=SystemClock(),
        marks=None,
        start_run=partial(
            launcher.start_run,
            device=settings.device,
            processes=settings.processes,
            nodes=settings.nnodes,
        ),
    )


def usable_marks(settings: TrainerSettings, base: PinnedBase) -> frozenset[str]:
    """Return the marks of the base's prompts. Raises `Misconfigured` if the trainer trains and the base cannot."""
    file = settings.folder / BASE_CHECK
    found = remembered_check(file, base, settings.chat_template_kwargs, settings.golden)
    if found.problem is not None and settings.mode == "train":
        raise Misconfigured(f"LOOPWRIGHT_BASE_MODEL={base.name}: {found.problem}")
    return found.marks


def check_base_meanwhile(
    settings: TrainerSettings, base: PinnedBase, trainer: Trainer, stopping: threading.Event
) -> list[LoopwrightError]:
    """Check the base in a thread, because importing its libraries takes seconds. If it cannot be used, set `stopping`.

    Returns a list that then contains the error. A run that starts meanwhile makes the same check.
    """
    problems: list[LoopwrightError] = []

    def check() -> None:
        try:
            trainer.use_marks(usable_marks(settings, base))
        except LoopwrightError as error:
            problems.append(error)
            stopping.set()

    threading.Thread(target=check, name="base-check", daemon=True).start()
    return problems


def lineage_queries(settings: TrainerSettings) -> LineageQueries:
    """Return the read-only queries of the HTTP API. Each reads the log, so they work before the trainer is ready."""
    readers = CheckedReaders(settings.kafka, SERVICE, settings.partitions)
    return LineageQueries(
        settings,
        lambda topic: readers([topic]),
        open_artifacts(settings.artifacts, settings.artifact_cache),
    )


def build_app(settings: TrainerSettings, readiness: Readiness) -> FastAPI:
    """Return the app of the HTTP API. Raises `Misconfigured` if it would be open to the network without keys."""
    access = Access.from_settings(settings)
    if access.keys is not None:
        readiness.watch("api_keys", lambda: access.problem)
    app = trainer_app(lineage_queries(settings), readiness)
    secure(app, access)
    return app


def run(settings: TrainerSettings) -> None:
    """Serve the HTTP API, and run the trainer until SIGTERM or SIGINT."""
    if settings.node_rank:
        raise Misconfigured(
            f"LOOPWRIGHT_TRAINER_NODE_RANK={settings.node_rank}: the trainer runs on machine 0. Run `python -m "
            "services.trainer.worker.join` here"
        )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    if settings.golden is not None:
        read_golden_set(settings.golden)  # a file with errors stops the start, not the first gate
    require_harness(settings.lm_eval_tasks)
    if settings.replay_prompt_file is not None:
        read_replay_prompts(settings.replay_prompt_file)
    readiness = Readiness("line", "base model", "kafka", "device")
    server = ServerThread(build_app(settings, readiness), settings.host, settings.port)
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        run_as_only_trainer(settings, readiness, stopping, stack)


def run_as_only_trainer(
    settings: TrainerSettings, readiness: Readiness, stopping: threading.Event, stack: ExitStack
) -> None:
    """Stand by until no other trainer uses the folder or works for the line. Then run the trainer.

    Raises:
        Fenced: another trainer took over the line while this one was cut off from Kafka.
        Misconfigured: the base cannot be trained.

    """
    lock = wait_for_folder(settings.folder, readiness, stopping)
    if lock is None:
        return
    stack.callback(lock.close)
    wait_for_kafka(lambda: check_partitions(settings.kafka, settings.partitions), readiness, stopping)
    lease = GroupLease(
        settings.kafka, lease_group(settings.line), OPERATOR_COMMANDS, SERVICE, on_taken=stopping.set
    )
    stack.callback(lease.close)
    readiness.watch("lease", lambda: lease.problem)
    readiness.set(
        "line", False, f"standing by: waiting until no other trainer works for line {settings.line}"
    )
    if not lease.wait(stopping):
        return
    readiness.set("line", True, settings.line)
    base = find_base(settings.base_model)
    readiness.set("base model", True, base.name)
    trainer = wait_for_kafka(lambda: build(settings, base), readiness, stopping)
    if trainer is None:
        return
    trainer.device.on_report = lambda report: readiness.set(
        "device", report.problem is None, report.problem or report.text
    )
    readiness.watch("log", lambda: trainer.problem)
    readiness.watch("publisher", lambda: trainer.publisher.problem)
    problems = check_base_meanwhile(settings, base, trainer, stopping)
    trainer.run(stopping)
    if problems:
        raise problems[0]
    if lease.taken:
        raise Fenced(
            f"another trainer took over line {settings.line} while this one was cut off from Kafka: start it again, "
            "and it stands by"
        )


def wait_for_folder(folder: Path, readiness: Readiness, stopping: threading.Event) -> IO[str] | None:
    """Lock the trainer's folder, when no other trainer uses it any more. Returns None if stopped before."""
    while not stopping.is_set():
        try:
            return lock_folder(folder)
        except Misconfigured as taken:
            readiness.set("line", False, f"standing by: {taken}")
            stopping.wait(RETRY_S)
    return None


def wait_for_kafka(connect: Callable[[], T], readiness: Readiness, stopping: threading.Event) -> T | None:
    """Call `connect` until Kafka lets it succeed, and return its result; None if stopped before.

    `/readyz` says why it waits.
    """
    while not stopping.is_set():
        try:
            connected = connect()
        except Retryable as error:
            readiness.set("kafka", False, f"waiting: {error}")
            log.warning("waiting_for_kafka", code=error.code, error=str(error))
            stopping.wait(RETRY_S)
        else:
            readiness.set("kafka", True)
            return connected
    return None


def main() -> None:
    """Run the service."""
    run_service(SERVICE, TrainerSettings, run)


if __name__ == "__main__":
    main()
