"""The servers that the benchmark compares, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from deploy.local.ports import choose_ports

READY_S: Final = 300.0
CACHE_TOKENS, CACHE_MB = 64 * 256, 384
"""Size of the key and value cache of every server, in tokens, and in MiB for SmolLM2-135M in bfloat16."""
STEP_TOKENS: Final = 512
"""Tokens that a server computes in one step."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        url: Its address.
        models: Names to ask for: the base, then the versions.
        process: Its process.
        serve: Makes a version the one that requests for the line get. Only our gateway can.

    """

    url: str
    models: tuple[str, ...]
    process: psutil.Process
    serve: Callable[[int], dict[str, Any]] | None = None

    def cpu_s(self) -> float:
        """Return the processor time that the server has used, in seconds."""
        times = [process.cpu_times() for process in (self.process, *self.process.children(recursive=True))]
        return sum(time.user + time.system for time in times)


@dataclass(frozen=True, slots=True)
class Setup:
    """What all servers have in common: the base, adapters of it, and the threads that compute."""

    base: Path
    adapters: tuple[Path, ...]
    threads: int

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a server."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("LOOPWRIGHT_")}
        return own | {
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }


@contextmanager
def embedded(setup: Setup) -> Iterator[Server]:
    """Run our gateway with the embedded engine."""
    port = choose_ports({"http": 0})["http"]
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        environment = setup.environment | {
            "LOOPWRIGHT_BASE_MODEL": str(setup.base),
            "LOOPWRIGHT_INFERENCE_THREADS": str(setup.threads),
            "LOOPWRIGHT_INFERENCE_MAX_BATCH_TOKENS": str(STEP_TOKENS),
            "LOOPWRIGHT_INFERENCE_KV_CACHE_MB": str(CACHE_MB),
            "LOOPWRIGHT_LOG_LEVEL": "ERROR",
        }
        command = [
            sys.executable,
            "-m",
            "benchmarks.serving.gateway",
            "--port",
            str(port),
            "--folder",
            folder,
        ]
        command += ["--adapters", ",".join(map(str, setup.adapters))]
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None

        def answer() -> dict[str, Any]:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError("the gateway ended; its error is above")
            result: dict[str, Any] = json.loads(line)
            return result

        def serve(number: int) -> dict[str, Any]:
            assert process.stdin is not None
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            return answer()

        try:
            models = tuple(answer()["models"])
            yield Server(f"http://127.0.0.1:{port}", models, psutil.Process(process.pid), serve)
        finally:
            process.stdin.close()
            process.wait(60)


@contextmanager
def transformers_serve(setup: Setup) -> Iterator[Server]:
    """Run `transformers serve --continuous-batching` with the base."""
    port = choose_ports({"http": 0})["http"]
    command = [
        str(Path(sys.executable).with_name("transformers")), "serve", str(setup.base),
        "--device", "cpu", "--port", str(port), "--host", "127.0.0.1", "--continuous-batching",
        "--cb-num-blocks", str(CACHE_TOKENS // 256), "--cb-max-batch-tokens", str(STEP_TOKENS),
        "--log-level", "error",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=setup.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/health", process)
        yield Server(url, (str(setup.base),), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server did not answer {url} within {READY_S:.0f} seconds")


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    """Write a LoRA adapter as the trainer makes them, rank 16 on all linear layers, with small random weights."""
    code = f"""
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM
torch.manual_seed({seed})
base = AutoModelForCausalLM.from_pretrained({str(base)!r})
adapter = PeftModel(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
with torch.no_grad():
    for name, weight in adapter.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=2e-3)
adapter.save_pretrained({str(folder)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    (folder / "README.md").unlink(missing_ok=True)
    return folder
