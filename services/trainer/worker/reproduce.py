"""Reproduce one version: `python -m services.trainer.worker.reproduce FOLDER`.

FOLDER is laid out like a run's folder, with the run's configuration and snapshot, and with the version's own artifact
in `original/`. The process trains as the run did, compares the two adapters, and writes `compared.json` last. Exit
codes: `run/folder.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.trainer.files import write_whole
from services.trainer.run import environment
from services.trainer.run.context import RunContext
from services.trainer.run.environment import Environment
from services.trainer.run.folder import ADAPTER, COMPARISON, ORIGINAL
from services.trainer.worker.bootstrap import start_process
from services.trainer.worker.pipeline import run_to_exit_code
from shared.adapters.artifact_manifest import LINEAGE_FILE, file_digest

GPU_DISTANCE: Final = 0.01
"""Relative distance up to which weights count as reproduced on the same GPU with the same software. A GPU adds in an
order that changes from run to run, so its bytes differ. Chosen, not measured: see docs/decisions/lineage.md."""
MAX_DISTANCE: Final = 0.05
"""Relative distance up to which weights count as reproduced on other hardware or software, which rounds differently.
Chosen, not measured: see docs/decisions/lineage.md."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A version's adapter compared with the adapter that was trained again.

    Attributes:
        files: SHA-256 digests of the original file (None if it is missing) and of the new one, by file name.
        distance: Relative distance of the weights; None if their names or shapes differ.
        differences: How the environments differ, in words.
        on_gpu: The adapter was trained again on a GPU.

    """

    files: dict[str, tuple[str | None, str]]
    distance: float | None
    differences: list[str]
    on_gpu: bool = False

    @property
    def is_bitwise_equal(self) -> bool:
        """Whether all files are equal byte for byte."""
        return all(original == new for original, new in self.files.values())


def reproduce(context: RunContext) -> Comparison:
    """Train the version again, unless that is done, and compare it. Raises `RunFailed` or `RunStopped`."""
    from services.trainer.training.train import train  # noqa: PLC0415 - importing torch takes seconds

    if not (context.folder / ADAPTER).exists():
        train(context)
    now = environment.current(context.folder, context.config.recipe)
    original = context.folder / ORIGINAL
    lineage = json.loads((original / LINEAGE_FILE).read_bytes())
    return compare(original, context.folder / ADAPTER, lineage["environments"], now)


def compare(
    original: Path, reproduced: Path, recorded: Sequence[Environment], now: Environment
) -> Comparison:
    """Compare two adapters, given the environments recorded with the original and the environment of the other."""
    names = sorted(path.name for path in reproduced.iterdir() if path.is_file())
    distances = [
        relative_distance(original / name, reproduced / name)
        for name in names
        if name.endswith(".safetensors")
    ]
    return Comparison(
        files={name: (_digest_or_none(original / name), file_digest(reproduced / name)) for name in names},
        distance=None if None in distances else max((d for d in distances if d is not None), default=None),
        differences=environment.differences(recorded, now),
        on_gpu=now["machine"].get("device", "cpu") != "cpu",
    )


def _digest_or_none(path: Path) -> str | None:
    return file_digest(path) if path.exists() else None


def relative_distance(original: Path, reproduced: Path) -> float | None:
    """Return |original - reproduced| / |original| over all weights, or None if their names or shapes differ."""
    if not original.exists():
        return None
    from safetensors.torch import load_file  # noqa: PLC0415 - imports torch

    before, after = load_file(original), load_file(reproduced)
    if {name: weight.shape for name, weight in before.items()} != {
        name: weight.shape for name, weight in after.items()
    }:
        return None
    difference = sum(float((before[name].double() - after[name].double()).square().sum()) for name in before)
    norm = sum(float(weight.double().square().sum()) for weight in before.values())
    return float((difference / norm) ** 0.5) if norm else float(difference > 0)


def judge(comparison: Comparison) -> tuple[bool, str]:
    """Return whether the version counts as reproduced, and the details in words.

    In the same environment every byte must be equal on a CPU, and the weights must be within `GPU_DISTANCE` on a GPU.
    In another environment they must be within `MAX_DISTANCE`.
    """
    differences = "; ".join(comparison.differences)
    if comparison.is_bitwise_equal:
        digest = next(
            (new for name, (_, new) in comparison.files.items() if name.endswith(".safetensors")), ""
        )
        return True, f"bit by bit (weights {digest[:16]})" + (
            f", although the environment differs ({differences})" if differences else ""
        )
    distance = comparison.distance
    unequal = ", ".join(name for name, (original, new) in comparison.files.items() if original != new)
    by = "in shape" if distance is None else f"by {distance:.2%}"
    details = f"{unequal} {'differ' if ',' in unequal else 'differs'}, the weights {by}"
    where = (
        f"in another environment ({differences})"
        if differences
        else "with the same software on the same machine"
    )
    if not differences and not comparison.on_gpu:
        return False, f"{details}, {where}"
    limit = MAX_DISTANCE if differences else GPU_DISTANCE
    if not differences:
        where += ", whose GPU rounds differently from run to run"
    if distance is not None and distance <= limit:
        return True, f"closely: {details} (at most {limit:.0%}), {where}"
    return False, f"{details} (more than {limit:.0%}), {where}"


def main() -> int:
    """Reproduce the version and return the exit code."""
    process = start_process("trainer-reproduce", "reproduce {}")

    def work() -> None:
        reproduced, message = judge(reproduce(process.context()))
        result = {"reproduced": reproduced, "message": message}
        write_whole(process.folder / COMPARISON, json.dumps(result, sort_keys=True).encode())

    return run_to_exit_code(process.folder, work)


if __name__ == "__main__":
    sys.exit(main())
