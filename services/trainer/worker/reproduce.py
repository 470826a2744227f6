"""One version trained again, in a process of its own: `python -m services.trainer.worker.reproduce SCRATCH`.

SCRATCH is a run's folder made anew from its configuration and snapshot; the version's own artifact lies in
`original/`. Trains as the run did, compares, writes `compared.json` last. Ends as a run's process does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from services.trainer.files import write_whole
from services.trainer.run import environment
from services.trainer.run.context import RunContext
from services.trainer.run.folder import ADAPTER, COMPARISON, ORIGINAL
from services.trainer.versions.model_card import LINEAGE_FILE
from services.trainer.worker.bootstrap import open_run, exit_code_of
from shared.adapters.artifact_manifest import file_digest


def reproduce(work: RunContext) -> dict[str, Any]:
    """Trains, unless it did, and compares with what lies in `original/`. Raises `RunFailed` or `Stopped`."""
    from services.trainer.training.train import train  # noqa: PLC0415 - seconds of imports, only where they are needed

    now = environment.current(work.folder, work.config.recipe)
    if not (work.folder / ADAPTER).exists():
        train(work)
    original = work.folder / ORIGINAL
    facts = json.loads((original / LINEAGE_FILE).read_bytes())
    return compare(original, work.folder / ADAPTER, facts.get("environments", []), now)


def compare(
    original: Path, made: Path, before: list[environment.Environment], now: environment.Environment
) -> dict[str, Any]:
    """`bitwise`: every file is the same, byte for byte. `distance`: of the weights, as a share of their size.
    `differences`: what the two were trained under that is not the same."""
    names = sorted(path.name for path in made.iterdir() if path.is_file())
    files = {name: [digest_or_none(original / name), file_digest(made / name)] for name in names}
    apart = [
        relative_distance(original / name, made / name) for name in names if name.endswith(".safetensors")
    ]
    return {
        "bitwise": all(one == other for one, other in files.values()),
        "files": files,
        "distance": max((one for one in apart if one is not None), default=None)
        if None not in apart
        else None,
        "differences": environment.differences(before, now),
    }


def digest_or_none(path: Path) -> str | None:
    """None where the version has no such file."""
    return file_digest(path) if path.exists() else None


def relative_distance(one: Path, other: Path) -> float | None:
    """|one - other| / |one| over all weights; None where they are not of the same names and shapes."""
    if not one.exists():
        return None
    from safetensors.torch import load_file  # noqa: PLC0415 - imports torch

    here, there = load_file(one), load_file(other)
    if {name: tuple(value.shape) for name, value in here.items()} != {
        name: tuple(value.shape) for name, value in there.items()
    }:
        return None
    apart = sum(float((here[name].double() - there[name].double()).square().sum()) for name in here)
    size = sum(float(value.double().square().sum()) for value in here.values())
    return float((apart / size) ** 0.5) if size else float(apart > 0)


def main() -> int:
    folder, _, work = open_run("trainer-reproduce", "reproduce {}")

    def done() -> None:
        compared = reproduce(work())
        write_whole(folder / COMPARISON, json.dumps(compared, sort_keys=True).encode())

    return exit_code_of(folder, done)


if __name__ == "__main__":
    sys.exit(main())
