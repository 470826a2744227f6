"""vLLM for CPUs in an environment of its own (5.9 GB), for tests against the real server: `make test-vllm`."""

from __future__ import annotations

import hashlib
import shutil
import sys
import urllib.request
from pathlib import Path
from subprocess import Popen
from time import monotonic, sleep

from deploy.local.atomic_dirs import exclusive_lock
from deploy.local.errors import StackError
from deploy.local.kafka_jars import Progress
from deploy.local.model import find_uv
from deploy.local.ports import HOST
from deploy.local.processes import Program, tail
from deploy.local.run_job import run_job
from deploy.local.services import REPOSITORY

LOCK = REPOSITORY / "requirements" / "vllm.txt"
STAMP = "installed"
"""File of a complete environment; it holds the lock's digest."""
KV_CACHE_GIB = 1


def ensure_vllm(prepared: Path, progress: Progress = print) -> Path:
    """Return the Python of the environment `prepared`/vllm; create it from its hashed lock if it is not complete.

    Raises:
        StackError: if uv is missing, or a package cannot be installed.

    """
    folder = (prepared / "vllm").resolve()
    python = folder / "bin" / "python"
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    with exclusive_lock(prepared / "vllm.lock"):
        stamp = folder / STAMP
        if stamp.exists() and stamp.read_text() == digest:
            return python
        uv = find_uv(prepared)
        if uv is None:
            raise StackError("installing vLLM needs uv: install it, or run `make install`, which does.")
        progress("vLLM: installing into .loopwright/vllm (5.9 GB, some minutes)")
        shutil.rmtree(folder, ignore_errors=True)
        into = [uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps", "--compile-bytecode"]
        for name, command in (
            ("vllm-venv", [uv, "venv", "--quiet", "--python", sys.executable, str(folder)]),
            ("vllm-install", [*into, "--require-hashes", "--requirements", str(LOCK)]),
        ):
            status, output = run_job(Program(name, command), prepared / "jobs")
            if status != 0:
                raise StackError(f"vLLM could not be installed. Run it again.\n{output.strip()}")
        stamp.write_text(digest)
        return python


def vllm_program(
    python: Path, model: Path, port: int, *, max_loras: int, max_lora_rank: int, max_model_len: int
) -> Program:
    """Return the program of a server in float32, which takes a few threads and about 3 GiB for a small model."""
    return Program(
        f"vllm-{port}",
        [
            str(python), "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(model), "--host", HOST, "--port", str(port), "--dtype", "float32",
            "--enable-lora", "--max-loras", str(max_loras), "--max-lora-rank", str(max_lora_rank),
            "--max-model-len", str(max_model_len), "--generation-config", "vllm",
        ],
        env={
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )  # fmt: skip


def wait_for_vllm(child: Popen[bytes], port: int, log: Path, *, seconds: float) -> str:
    """Wait until the server answers and return its URL.

    Raises:
        StackError: if it ends or does not answer in time; with the end of its log.

    """
    url = f"http://{HOST}:{port}"
    deadline = monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return url
        except OSError:
            if child.poll() is not None or monotonic() > deadline:
                raise StackError(f"vLLM did not start:\n{tail(log)}") from None
        sleep(0.5)
