"""`python -m services.inference` as it is deployed: a process of its own, with a port and folders for one test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from deploy.local.ports import choose_ports
from shared.adapters.kafka import KafkaLogReader
from shared.kafka_connection import KafkaConnection
from shared.records import Record

ROOT = Path(__file__).resolve().parents[1]
P = 6


class InferenceProcess:
    """An inference process with a port and folders for one test."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = choose_ports({"inference": 0})["inference"]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "inference.log"
        environment = {
            "LOOPWRIGHT_INFERENCE_PORT": str(self.port),
            "LOOPWRIGHT_PSEUDONYM_KEY": "a key that only this test has",
            "LOOPWRIGHT_DATA_DIR": str(folder / "data"),
            "LOOPWRIGHT_ARTIFACTS": str(folder / "artifacts"),
            "LOOPWRIGHT_PARTITIONS": str(P),
        }
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "services.inference"],
                cwd=ROOT, env={**os.environ, **environment, **settings}, stdout=log, stderr=log,
            )  # fmt: skip

    def checks(self) -> dict[str, str]:
        answer = httpx.get(f"{self.url}/readyz").json()
        return {name: str(detail) for name, detail in answer["checks"].items()}

    def ready(self) -> bool:
        assert self.child.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def spooled(self) -> int:
        """Return the number of response records that wait on disk."""
        metrics = httpx.get(f"{self.url}/metrics").text.splitlines()
        return int(
            float(next(line for line in metrics if line.startswith("loopwright_spool_records ")).split()[1])
        )

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def stop(self) -> int:
        """Stop the process and return its exit status."""
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(40)


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        threading.Event().wait(0.1)


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[InferenceProcess]:
    process = InferenceProcess(folder, **settings)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            process.child.kill()
        process.child.wait()


def read_all(kafka: str, topic: str) -> list[Record]:
    reader = KafkaLogReader(KafkaConnection(kafka), "console", [topic])
    records = []
    while not reader.at_end():
        records += reader.poll(0.5)
    reader.close()
    return records


def chat(client: OpenAI, line: str, **fields: Any) -> Any:
    defaults: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "max_tokens": 8,
    }
    return client.chat.completions.create(model=line, **(defaults | fields))
