"""Receipts from an index of millions of outcomes, without Redis: `make bench-receipts`.

Builds the index of a feedback process from records as Kafka would deliver them, closes it, opens it again, and asks for
receipts of random events from several threads while new records arrive. Redis is not there at all. The last line of
output is JSON, which is also written to `benchmarks/receipts.json`.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.machine import machine
from services.feedback.__main__ import SWITCH_INTERVAL_S
from services.feedback.core.receipts import NoOutcome
from services.feedback.receipt_index import ReceiptIndex
from services.feedback.views import VersionsView
from shared.events import Outcome, OutcomeKind, Thumbs
from shared.records import Record
from shared.stream.rocksdb_store import RocksDBStoreFactory
from shared.topics import DAY_MS, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES, INPUT_DAYS

PARTITIONS = 24
POLL_RECORDS = 500
"""Records that one poll of the log returns at most."""
THREADS = 8
DAYS = 90
CACHE_MB = 32
OUTPUT = Path(__file__).parent / "receipts.json"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
BEGAN_MS = round(BEGAN.timestamp() * 1000)
GOAL_MS = 20.0


def main(
    events: Annotated[int, typer.Option(min=1_000, help="Outcomes in the index.")] = 5_000_000,
    lookups: Annotated[int, typer.Option(min=100, help="Receipts to ask for.")] = 20_000,
    output: Annotated[Path, typer.Option(help="File for the JSON.")] = OUTPUT,
) -> None:
    """Measure, and print one JSON line."""
    with tempfile.TemporaryDirectory() as name:
        report = measure(Path(name), events, lookups)
    print(json.dumps(report, indent=1))
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def measure(folder: Path, events: int, lookups: int) -> dict[str, Any]:
    """Build the index, open it again, and ask for receipts."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    factory = RocksDBStoreFactory(folder, CACHE_MB)
    open_store = partial(factory, 0)
    before = rss_mb()
    index = ReceiptIndex(open_store, max_records=50_000_000)
    index.open()
    began, records, peak = time.perf_counter(), 0, before
    for batch in batches(events):
        index.apply(batch, {})
        records += len(batch)
        if records % (POLL_RECORDS * 200) == 0:
            peak = max(peak, rss_mb())
            print(f"{records:,} records", end="\r", file=sys.stderr, flush=True)
    built_s = time.perf_counter() - began
    index.close()
    began = time.perf_counter()
    reopened = ReceiptIndex(open_store, max_records=50_000_000)
    reopened.open()
    opened_s = time.perf_counter() - began
    known = ask(reopened, events, [random.randrange(events) for _ in range(lookups)])
    unknown = ask(reopened, events, [events * 2 + n for n in range(lookups // 4)])
    peak = max(peak, rss_mb())
    reopened.close()
    return {
        "bench": "receipts",
        "outcomes": events,
        "records": records,
        "build_records_per_s": round(records / built_s),
        "open_s": round(opened_s, 2),
        "known": known,
        "unknown": unknown,
        "goal_p99_ms": GOAL_MS,
        "goal_reached": known["p99_ms"] < GOAL_MS,
        "memory_mb_before": before,
        "memory_mb_peak": peak,
        "disk_mb": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20),
        "machine": machine(),
    }


def batches(events: int, start: int = 0) -> Iterator[list[Record]]:
    """Yield the records of events and their outcomes as polls of the log would, over 90 days.

    Arrivals are kept for 35 days only, so older events have none.
    """
    batch: list[Record] = []
    for n in range(start, start + events):
        at_ms = BEGAN_MS + n * DAYS * DAY_MS // (start + events)
        if n * DAYS >= (start + events) * (DAYS - INPUT_DAYS):
            batch.append(record(FEEDBACK_EVENTS.name, n, at_ms, arrival(n)))
        batch.append(record(FEEDBACK_OUTCOMES.name, n, at_ms, outcome(n)))
        if len(batch) >= POLL_RECORDS:
            yield batch
            batch = []
    if batch:
        yield batch


def record(topic: str, n: int, at_ms: int, value: bytes) -> Record:
    """Return the n-th record of a topic."""
    return Record(topic, n % PARTITIONS, n // PARTITIONS, at_ms, b"%d" % n, value, ())


def ids(n: int) -> tuple[str, str]:
    """Return response_id and event_id of the n-th event."""
    return f"chatcmpl-{n:024x}", f"event-{n:024x}"


def arrival(n: int) -> bytes:
    """Return the n-th event."""
    return _filled(_ARRIVAL, n)


def outcome(n: int) -> bytes:
    """Return the outcome of the n-th event."""
    return _filled(_OUTCOME, n)


def _filled(template: bytes, n: int) -> bytes:
    response_id, event_id = ids(n)
    return template.replace(b"RESPONSE", response_id.encode()).replace(b"EVENT", event_id.encode())


_ARRIVAL = Thumbs(
    line="assistant",
    response_id="RESPONSE",
    event_id="EVENT",
    user_id="u" * 32,
    value="up",
    received_at=BEGAN,
).to_json()
_OUTCOME = Outcome(
    line="assistant",
    response_id="RESPONSE",
    event_id="EVENT",
    outcome=OutcomeKind.BATCHED,
    batch_id="assistant-17-12345",
    revision=1,
    decided_at=BEGAN,
).to_json()


def ask(index: ReceiptIndex, events: int, numbers: list[int]) -> dict[str, float]:
    """Ask for receipts from several threads while new records arrive; return the percentiles in ms."""
    versions, stop = VersionsView(), threading.Event()

    def write() -> None:
        for batch in batches(events, start=events):
            index.apply(batch, {})
            if stop.wait(0.25):
                return

    def one(n: int) -> float:
        began = time.perf_counter()
        found = index.find(*ids(n))
        if not isinstance(found, NoOutcome):
            versions.receipt(found, BEGAN_MS)
        took = time.perf_counter() - began
        assert isinstance(found, NoOutcome) == (n >= 2 * events), f"event {n} is {found}"
        return 1000 * took

    writer = threading.Thread(target=write)
    writer.start()
    with ThreadPoolExecutor(THREADS) as pool:
        took = sorted(pool.map(one, numbers))
    stop.set()
    writer.join()
    percentiles = statistics.quantiles(took, n=100)
    return {
        "lookups": len(took),
        "p50_ms": round(percentiles[49], 3),
        "p99_ms": round(percentiles[98], 3),
        "max_ms": round(took[-1], 3),
    }


def rss_mb() -> int:
    """Return the memory of this process in MiB."""
    return int(psutil.Process().memory_info().rss >> 20)


if __name__ == "__main__":
    typer.run(main)
