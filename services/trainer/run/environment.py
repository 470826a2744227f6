"""Software and hardware that a run trained on, recorded because the trained weights depend on them.

A run records its environment each time training starts or resumes; equal ones are recorded once. Records contain no
paths and no host names, because they are published with the version.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, TypedDict

from services.trainer.base import dtype
from services.trainer.base.device import describe, driver_version, processor_name
from services.trainer.core.recipe import Recipe
from services.trainer.files import write_whole
from services.trainer.run import micro_batch, resolved
from services.trainer.run.folder import ENVIRONMENTS

LIBRARIES: Final = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
)


class Environment(TypedDict):
    """Versions of Python and of libraries by name, and properties of the machine and of its use by name."""

    software: dict[str, str]
    machine: dict[str, str | int]


def current(run: Path, recipe: Recipe) -> Environment:
    """Return the environment in which training in the folder `run` runs now. Imports torch."""
    environment = host(recipe.threads)
    size = micro_batch.read(run)
    environment["machine"] |= {
        "micro_batch_tokens": 0 if size is None else size.tokens,
        "dtype": dtype.of_run(run),
    }
    trained_with = resolved.read(run)
    if trained_with is not None and trained_with.processes > 1:
        environment["machine"]["processes"] = trained_with.processes
    return environment


def host(threads: int) -> Environment:
    """Return software and hardware of this host, with `threads` torch threads. Imports torch."""
    import torch  # noqa: PLC0415 - takes seconds, and only training processes need it

    hardware = describe()
    software = {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
    machine: dict[str, str | int] = {
        "device": hardware.name if hardware.kind == "cuda" else "cpu",
        "processor": processor_name(),
        "architecture": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
    }
    if hardware.kind == "cuda":
        software |= {
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "driver": driver_version(),
        }
        machine |= {
            "gpu_memory_mib": hardware.memory_bytes >> 20,
            "gpu_capability": ".".join(map(str, hardware.capability or ())),
        }
    return {"software": software, "machine": machine}


def record(run: Path, environment: Environment) -> None:
    """Append `environment` to the run's records unless it is already there."""
    recorded = read(run)
    if environment not in recorded:
        write_whole(run / ENVIRONMENTS, json.dumps([*recorded, environment], sort_keys=True).encode())


def read(run: Path) -> list[Environment]:
    """Return the recorded environments, oldest first; empty if training has not started."""
    file = run / ENVIRONMENTS
    return list(json.loads(file.read_bytes())) if file.exists() else []


def differences(recorded: Sequence[Environment], now: Environment) -> list[str]:
    """Return in words how `now` differs from the environments that a version was trained in.

    Empty if it was trained in this one environment only.
    """
    if not recorded:
        return ["the version does not record its software"]
    found = []
    if len(recorded) > 1:
        found.append(f"training was resumed on other software or hardware ({len(recorded)} environments)")
    then = recorded[-1]
    for before, after in ((then["software"], now["software"]), (then["machine"], now["machine"])):
        found += [
            f"{name} {before.get(name, 'unknown')} then, {after.get(name, 'unknown')} now"
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
    return found
