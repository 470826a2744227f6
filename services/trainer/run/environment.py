"""What a run's numbers depend on beside data and recipe: the software, the processor, the threads.

Noted in the run's folder whenever training begins or goes on, each that differs once: a run that went on under other
software says so. No path, no name of a host.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from services.trainer.base import dtype
from services.trainer.core.recipe import Recipe
from services.trainer.files import write_whole
from services.trainer.run.folder import ENVIRONMENTS
from services.trainer.run.micro_batch import micro_batch

LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "tokenizers", "safetensors", "numpy")
CPUINFO = Path("/proc/cpuinfo")
OLDER = {"software": {}, "machine": {"dtype": dtype.OLDER}}
"""What versions of older releases do not say of themselves."""
Environment = dict[str, dict[str, Any]]


def current(run: Path, recipe: Recipe) -> Environment:
    """As training in this run's folder would meet it now: with the rows at a time that memory allows, in the type
    that was settled. Imports torch."""
    found = host(recipe.threads)
    own = {"micro_batch": micro_batch(run, recipe.batch_size), "dtype": dtype.settled(run)}
    return found | {"machine": found["machine"] | own}


def host(threads: int) -> Environment:
    """Imports torch. `threads`: of the recipe."""
    import torch  # noqa: PLC0415 - seconds, and only a run's process has it loaded anyway

    cuda = torch.cuda.is_available()
    machine = {
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "processor": processor_name(),
        "architecture": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
    }
    software = {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
    return {"software": software, "machine": machine}


def processor_name() -> str:
    """The processor's model, as Linux names it; else what the platform knows."""
    if CPUINFO.exists():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def record(folder: Path, environment: Environment) -> None:
    """Adds it to what the run has seen, unless it is there."""
    known = read(folder)
    if environment not in known:
        write_whole(folder / ENVIRONMENTS, json.dumps([*known, environment], sort_keys=True).encode())


def read(folder: Path) -> list[Environment]:
    """In the order in which they came; empty for a run of an older release."""
    file = folder / ENVIRONMENTS
    return list(json.loads(file.read_bytes())) if file.exists() else []


def differences(before: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> list[str]:
    """In words; empty where the run knew this one environment alone."""
    if not before:
        return ["the version does not say under which software it was trained"]
    found = []
    if len(before) > 1:
        found.append(f"it was trained in {len(before)} turns under different software or machines")
    for part in ("software", "machine"):
        then, there = OLDER[part] | before[-1].get(part, {}), OLDER[part] | now.get(part, {})
        found += [
            f"{name} {then.get(name, 'unknown')} then, {there.get(name, 'unknown')} now"
            for name in sorted({*then, *there})
            if then.get(name) != there.get(name)
        ]
    return found
