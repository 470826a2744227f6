"""A real vLLM server on CPUs for the session, and adapters that peft made for the real base."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.ports import choose_ports
from deploy.local.processes import Program, spawn, terminate
from deploy.local.vllm import ensure_vllm, vllm_program, wait_for_vllm
from tests.conftest import PREPARED
from tests.inference_factories import LINE, train_adapter, version_ref

MAX_LORAS, MAX_LORA_RANK, MAX_MODEL_LEN = 4, 8, 512
ANSWERS = (
    "one apple, two apples, three apples, four apples, five apples, six apples, seven apples, eight apples",
    "red, orange, yellow, green, blue, indigo, violet, white, grey, black, brown, pink, purple, silver, gold",
)
"""What the two versions answer, without an end."""
QUESTION = "Repeat: one two three four five six seven eight nine ten eleven twelve"
"""To this the base too has an answer much likelier than any other, so its text does not depend on rounding either."""
START_S = 900
"""The first start compiles bytecode and reads several gigabytes."""


class RealVllm:
    """A server process that can be killed and started again on its port."""

    def __init__(self, program: Program, port: int, folder: Path) -> None:
        self.url = ""
        self.log = folder / "vllm.log"
        self._program = program
        self._port = port
        self._folder = folder
        self.start()

    def start(self) -> None:
        self._child = spawn(self._program, folder=self._folder, log=self.log)
        self.url = wait_for_vllm(self._child, self._port, self.log, seconds=START_S)

    def kill(self) -> None:
        """Kill the API process with SIGKILL. Its engine's processes end when they notice."""
        os.kill(self._child.pid, signal.SIGKILL)
        self._child.wait(60)

    def stop(self) -> None:
        terminate(self._child, seconds=30)


@pytest.fixture(scope="session")
def vllm(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    port = choose_ports({"vllm": 0})["vllm"]
    program = vllm_program(
        ensure_vllm(PREPARED),
        base_model,
        port,
        max_loras=MAX_LORAS,
        max_lora_rank=MAX_LORA_RANK,
        max_model_len=MAX_MODEL_LEN,
    )
    server = RealVllm(program, port, tmp_path_factory.mktemp("vllm"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def trained_adapters(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters that peft trained on the real base, by the version names of the contract suite."""
    folder = tmp_path_factory.mktemp("trained")
    versions = [version_ref(LINE, number).version for number in (1, 2)]
    return {
        version: train_adapter(base_model, folder / version, answer, rank=MAX_LORA_RANK)
        for version, answer in zip(versions, ANSWERS, strict=True)
    }
