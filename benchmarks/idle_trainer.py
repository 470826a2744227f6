"""`python -m benchmarks.idle_trainer`: what the trainer's service costs while it has nothing to do.

Stores rows through the service's own consumer, as it does when it reads `training.batches`, copies them in SQL to the
wanted number, and then lets a fresh process run the service's loop idle over that database. The copies have ids of
their own; to check them one by one would take minutes and make no difference to an idle service. The log, Kafka and
Redis are replaced by objects in memory, so the figures are those of the service itself: share of one core, and resident
memory.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import services.trainer.__main__  # noqa: F401 - so that the process is as large as the real service
from benchmarks.machine import machine
from services.trainer.consumer import TOPICS_READ
from services.trainer.database import open_database
from services.trainer.dataset.feedback_changes import EXAMPLES, RELEASABLE_ROWS
from services.trainer.service import Trainer
from services.trainer.settings import TrainerSettings
from services.trainer.versions.publish import SERVICE, VersionLog, transactional_id
from services.trainer.worker import launcher
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import PinnedBase
from shared.adapters.clock import SystemClock
from shared.adapters.in_memory import (
    InMemoryCache,
    InMemoryLog,
    InMemoryLogReader,
    InMemoryPublisher,
    InMemoryTransactionalPublisher,
)
from shared.events import Batch, Choice, ExampleRevision, Message, Signal
from shared.records import Record
from shared.topics import TRAINING_BATCHES

LINE: Final = "assistant"
BATCH_ROWS: Final = 200
ROWS_PER_USER: Final = 10
NOW: Final = datetime(2026, 3, 4, tzinfo=UTC)
RESULTS: Final = Path(__file__).with_name("idle_trainer.json")
MAX_CPU_SHARE, MAX_MB = 0.02, 300
"""Limits that the service must keep with 1,000,000 rows."""
app = typer.Typer(add_completion=False)


@app.command()
def main(
    rows: Annotated[int, typer.Option(help="Collected rows, a multiple of --stored.")] = 1_000_000,
    stored: Annotated[
        int, typer.Option(help="Rows that the consumer stores; the others are copies.")
    ] = 20_000,
    seconds: Annotated[float, typer.Option(help="How long the idle service is watched.")] = 30.0,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Fill a database, watch an idle service over it, and write benchmarks/idle_trainer.json."""
    if folder is not None:
        print(json.dumps(watch(folder, seconds)))
        return
    with tempfile.TemporaryDirectory(prefix="idle-trainer-") as name:
        filled = fill(Path(name), stored, rows // stored)
        print(f"stored and counted {rows:,} rows in {filled['seconds']:.0f} s", flush=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.idle_trainer",
            "--seconds",
            str(seconds),
            "--folder",
            name,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        idle = json.loads(done.stdout.splitlines()[-1])
    result = {"rows": rows, "stored": stored, "fill": filled, "idle": idle, "machine": machine()}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"share of a core {idle['cpu_share']:.2%} (limit {MAX_CPU_SHARE:.0%}), ", end="")
    print(f"memory {idle['memory_mb']:.0f} MB (limit {MAX_MB} MB)")
    print(json.dumps(result))
    if idle["cpu_share"] > MAX_CPU_SHARE or idle["memory_mb"] > MAX_MB:
        raise typer.Exit(1)


def fill(folder: Path, rows: int, times: int) -> dict[str, Any]:
    """Store `rows` rows and count them, as the service does, and copy them to `times` as many. Return figures."""
    trainer = trainer_over(folder)
    began, cpu = time.monotonic(), time.process_time()
    for number, start in enumerate(range(0, rows, BATCH_ROWS), 1):
        batch = batch_of(number, range(start, min(rows, start + BATCH_ROWS)))
        record = Record(
            topic=TRAINING_BATCHES.name,
            partition=0,
            offset=number,
            key=batch.batch_id.encode(),
            value=batch.to_json(),
            timestamp=0,
        )
        trainer.consume([record])
    counted = {"counted_rows_per_cpu_second": round(rows / (time.process_time() - cpu))}
    copy_rows(trainer.db, times)
    trainer.db.close()
    database = sum(file.stat().st_size for file in folder.rglob("trainer.sqlite3*"))
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "database_mb": round(database / 1e6),
        "memory_mb": peak_memory_mb(),
    } | counted


def copy_rows(db: sqlite3.Connection, times: int) -> None:
    """Multiply what is collected by `times`. The copies have other ids, users and contents, and later batch numbers."""
    batches = db.execute("SELECT MAX(number) FROM batches").fetchone()[0]
    stored = {
        table: db.execute(f"SELECT MAX(rowid) FROM {table}").fetchone()[0] or 0
        for table in ("batches", "rows", "feedback")
    }
    names = db.execute("SELECT response_id FROM counted_examples").fetchall()
    users = db.execute("SELECT * FROM new_users").fetchall()
    for copy in range(1, times):
        suffix, later = f"-{copy}", copy * batches
        with db:
            db.execute(
                "INSERT INTO batches SELECT batch_id || ?, partition, number + ?, rewrite, cut_ms FROM batches "
                "WHERE rowid <= ?",
                (suffix, later, stored["batches"]),
            )
            db.execute(
                "INSERT INTO rows SELECT batch_id || ?1, response_id || ?1, revision, op, example FROM rows "
                "WHERE rowid <= ?2",
                (suffix, stored["rows"]),
            )
            db.execute(
                "INSERT INTO feedback SELECT response_id || ?1, position, event_id || ?1, identity || ?1, "
                "user_id || ?1, kind, label, CAST(content || ?1 AS BLOB), occurred_ms, reason, releasable, trains, "
                "partition, number + ?2, cut_ms, release, is_new FROM feedback WHERE rowid <= ?3",
                (suffix, later, stored["feedback"]),
            )
            db.executemany("INSERT INTO counted_examples VALUES (?)", [(name + suffix,) for (name,) in names])
            db.executemany(
                "INSERT INTO new_users VALUES (?, ?, ?)",
                [(user + suffix, *counts) for user, *counts in users],
            )
    with db:
        for table in ("feedback_totals", "feedback_reasons"):
            db.execute(f"UPDATE {table} SET rows = rows * ?", (times,))
        db.execute(
            "UPDATE count_state SET value = value * ? WHERE name IN (?, ?)",
            (times, EXAMPLES, RELEASABLE_ROWS),
        )


def watch(folder: Path, seconds: float) -> dict[str, Any]:
    """Run the service's loop over a filled database, and measure it once it is idle."""
    began = time.monotonic()
    trainer = trainer_over(folder)
    stopping = threading.Event()
    figures: dict[str, Any] = {}

    def measure() -> None:
        time.sleep(5)  # the first reading of the counts is not idle
        cpu, start = time.process_time(), time.monotonic()
        time.sleep(seconds)
        figures["cpu_share"] = round((time.process_time() - cpu) / (time.monotonic() - start), 5)
        figures["memory_mb"] = memory_mb()
        stopping.set()

    figures["start_s"] = round(time.monotonic() - began, 2)
    threading.Thread(target=measure, daemon=True).start()
    trainer.run(stopping)
    counts = trainer.counter.read()
    return figures | {"peak_memory_mb": peak_memory_mb(), "new": counts.examples, "users": counts.users}


def trainer_over(folder: Path) -> Trainer:
    """Return a trainer over a folder and an empty log. It never has enough data to start a run."""
    settings = TrainerSettings(
        line=LINE,
        data_dir=folder / "data",
        artifacts=str(folder / "artifacts"),
        examples=10**9,
        aged_examples=10**9,
    )
    log = InMemoryLog()
    return Trainer(
        settings=settings,
        base=PinnedBase(folder, "tiny", "ab" * 32),
        db=open_database(settings.folder),
        reader=InMemoryLogReader(log, TOPICS_READ),
        publisher=InMemoryPublisher(log, SERVICE),
        versions=VersionLog(
            LINE,
            lambda topic: InMemoryLogReader(log, [topic]),
            lambda: InMemoryTransactionalPublisher(log, SERVICE, transactional_id(LINE)),
        ),
        store=LocalArtifactStore(settings.artifacts),
        cache=InMemoryCache(),
        clock=SystemClock(),
        start_run=launcher.start_run,
    )


def batch_of(number: int, rows: Sequence[int]) -> Batch:
    """Return a batch of corrections: one in ten contains an IP address, so the quarantine is as large as a real one."""
    examples = tuple(example_of(row) for row in rows)
    return Batch(
        line=LINE,
        batch_id=f"{LINE}-0-{number}",
        partition=0,
        number=number,
        reason="count",
        examples=examples,
        content_hash=Batch.hash_of(examples),
        cut_at=NOW,
    )


def example_of(row: int) -> ExampleRevision:
    """Return the correction number `row`."""
    address = f" Its tracker at 8.8.{row % 256}.{row % 254 + 1} shows it." if row % 10 == 0 else ""
    signal = Signal(
        event_id=f"event-{row:08d}",
        kind="correction",
        user_id=f"user-{row // ROWS_PER_USER:07d}",
        value=f"Order {row} was sent on Monday, and arrives within {row % 9 + 2} working days.{address}",
        occurred_at=NOW,
    )
    return ExampleRevision(
        line=LINE,
        response_id=f"response-{row:08d}-0000-4000",
        revision=1,
        op="upsert",
        version=f"{LINE}@base-00000000",
        messages=(
            Message(role="system", content="You answer questions about orders."),
            Message(role="user", content=f"When does my order {row} arrive?"),
        ),
        choices=(Choice(index=0, text="I am not sure about that."),),
        signals=(signal,),
        responded_at=NOW,
        revised_at=NOW,
    )


def memory_mb() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


if __name__ == "__main__":
    app()
