"""A run that several processes train, in a folder of its own, started as the service starts it. Without Kafka."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from services.trainer.core.recipe import Recipe
from services.trainer.dataset.filters import GroupedRow, Row
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.dataset.snapshot_files import write as write_snapshot
from services.trainer.files import write_whole
from services.trainer.run.checkpoint_manifest import newest_step
from services.trainer.run.folder import ADAPTER, CHECKPOINTS, CONFIG, RUN_LOG
from services.trainer.run.run_table import RunConfig
from services.trainer.worker import launcher
from shared.adapters.base_model import find_base
from tests.trainer_factories import LINE
from tests.trainer_fixture import wait_until

START_S = 400
"""Timeout of a start. Each process imports for some ten seconds of processor time, more on a busy machine."""


def mixed_rows() -> list[Row]:
    """Return rows of all objectives, of different lengths."""

    def row(number: int, answer: str, original: str = "", **fields: Any) -> Row:
        question = f"Who lives in house {number}{', the one behind the mill,' * (number % 3)} since 1900?"
        messages = (("user", question),)
        return Row(f"r{number}", 1, f"e{number}", f"u{number}", messages, original, answer, 0, **fields)

    return [
        *(row(n, f"Ada {'Lovelace ' * (n % 4)}lives there.") for n in range(12)),
        *(
            row(n, f"Number {n}.", kind="thumbs", objective="kto", label=n % 2 == 0)  # n is the house
            for n in range(20, 28)
        ),
        *(
            row(n, f"It is Ida {n}.", "I do not know.", kind="preference", objective="dpo")
            for n in range(30, 35)
        ),
    ]


class ProcessesRun:
    """A run's folder, and the processes that are started for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def new(cls, folder: Path, model: Path, **recipe: Any) -> ProcessesRun:
        """Return a new run with a complete snapshot."""
        base = find_base(str(model))
        settings = {
            "rank": 4,
            "epochs": 2,
            "tokens_per_step": 110,
            "micro_batch_tokens": 100,
            "learning_rate": 1e-3,
            "dtype": "float32",
            "threads": 1,
            "checkpoint_steps": 2,
            "replay_prompts": 2,
            "replay_new_tokens": 4,
            "replay_share": 0.0,
        }
        config = RunConfig(
            run_id=folder.name,
            line=LINE,
            through={"0": 1},
            recipe=Recipe(**settings | recipe),
            base=str(base.path),
            base_name=base.name,
            base_digest=base.digest,
            stable=base.ref(LINE),
            stable_run=None,
            created_ms=1_772_582_400_000,
        )
        folder.mkdir(parents=True)
        write_whole(folder / CONFIG, config.to_json().encode())
        rows = [GroupedRow(one, number) for number, one in enumerate(mixed_rows())]
        write_snapshot(folder, Snapshot(tuple(rows), (), (), {"0": 1}), 10)
        return cls(folder)

    def copy(self, folder: Path) -> ProcessesRun:
        """Return a copy in another folder."""
        shutil.copytree(self.folder, folder)
        return ProcessesRun(folder)

    @property
    def step(self) -> int:
        """Return the step of the newest checkpoint."""
        return newest_step(self.folder / CHECKPOINTS)

    @property
    def adapter(self) -> Path:
        """Return the file of the trained weights."""
        return self.folder / ADAPTER / "adapter_model.safetensors"

    def log(self) -> str:
        """Return the output of all processes."""
        return (self.folder / RUN_LOG).read_text()

    def start(self, processes: int, nodes: int = 1) -> subprocess.Popen[bytes]:
        """Start the next process, as the service does."""
        return launcher.start_run(self.folder, "cpu", processes, nodes)

    def run(self, processes: int) -> int:
        """Start the next process, wait for its end, and return its exit code."""
        return self.start(processes).wait(START_S)


def ranks_of(agent: subprocess.Popen[bytes], count: int = 2) -> dict[int, int]:
    """Return the process id of each rank that an agent has started, once there are `count`."""

    def started() -> dict[int, int]:
        found = {rank: pid for pid in children(agent.pid) if (rank := rank_of(pid)) is not None}
        return found if len(found) == count else {}

    return wait_until(started, START_S, "the ranks")


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def rank_of(pid: int) -> int | None:
    """Return the rank that torchrun gave to a process, or None."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(one[5:]) for one in environment if one.startswith(b"RANK=")), None)
