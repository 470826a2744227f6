"""Our own gateway as a benchmark runs it: the whole inference service, with records that go to memory instead of Kafka.

Reads commands from standard input: a version's number (0 is the base) makes it the stable version. Writes a JSON line
when it is ready, and one after each command.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvicorn

from services.inference.api.chat_handler import ChatHandler
from services.inference.api.routes import create_app
from services.inference.response_publisher import SpoolResponsePublisher, SpoolSender
from services.inference.service import build_engine
from services.inference.settings import InferenceSettings
from services.inference.spool import Spool
from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import VersionSwap
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import find_base
from shared.adapters.clock import SystemClock
from shared.adapters.in_memory import InMemoryLog, InMemoryPublisher
from shared.pseudonym import Pseudonymiser
from shared.telemetry import Readiness
from shared.versions import RolloutRecord, VersionRef, version_name

app = typer.Typer(add_completion=False)


@app.command()
def main(
    port: Annotated[int, typer.Option(help="Port of the HTTP API.")],
    folder: Annotated[Path, typer.Option(help="Folder for the spool and the artifacts.")],
    adapters: Annotated[str, typer.Option(help="Folders of adapters, separated by commas.")] = "",
) -> None:
    """Serve until standard input ends."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    settings = InferenceSettings()
    base = find_base(settings.base_model)
    readiness = Readiness("model")
    engine = build_engine(settings, base, lambda ok, detail: readiness.set("engine", ok=ok, detail=detail))
    registry = VersionRegistry(settings.line, base.ref(settings.line), engine.unload)
    store = LocalArtifactStore(folder / "artifacts")
    versions = [base.ref(settings.line)]
    for number, adapter in enumerate(filter(None, adapters.split(",")), start=1):
        uri, digest = store.put(Path(adapter))
        name = version_name(settings.line, number, digest)
        versions.append(VersionRef(version=name, kind="lora", uri=uri, digest=digest))
    swap = VersionSwap(registry, store, engine, lambda _: None)
    spool = Spool(folder / "spool.sqlite", settings.spool_mb << 20)
    sender = SpoolSender(spool, InMemoryPublisher(InMemoryLog(), "inference"), readiness)
    chats = ChatHandler(
        settings=settings,
        registry=registry,
        engine=engine,
        publisher=SpoolResponsePublisher(spool, readiness),
        readiness=readiness,
        pseudonyms=Pseudonymiser(b"k" * 32),
        clock=SystemClock(),
    )
    routes = create_app(chats, registry, readiness, lambda: swap.refusals)
    server = uvicorn.Server(uvicorn.Config(routes, "127.0.0.1", port, log_config=None, access_log=False))
    engine.start().result()
    readiness.set("model", ok=True)
    sender.start()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    print(json.dumps({"models": [ref.version for ref in versions]}), flush=True)
    for seq, line in enumerate(sys.stdin, start=1):
        begin = time.perf_counter()
        swap.apply(_record(settings.line, seq, versions[int(line)]))
        refused = [refusal.message for refusal in swap.refusals]
        print(json.dumps({"seconds": time.perf_counter() - begin, "refused": refused}), flush=True)
    server.should_exit = True
    thread.join(10)
    engine.stop(5)


def _record(line: str, seq: int, ref: VersionRef) -> RolloutRecord:
    return RolloutRecord(
        line=line, seq=seq, action="promote", stable=ref, reason="benchmark", decided_at=datetime.now(UTC)
    )


if __name__ == "__main__":
    app()
