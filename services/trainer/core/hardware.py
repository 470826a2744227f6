"""What a run computes on, and what follows from it: which GPU is chosen, and which data type fits it.

No I/O: `base/device.py` lists the GPUs and describes the device of the present process.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from shared.errors import Misconfigured

Dtype: TypeAlias = Literal["bfloat16", "float16", "float32"]
DeviceKind: TypeAlias = Literal["cpu", "cuda"]
Quantization: TypeAlias = Literal["none", "4bit"]
"""Weights of the base in memory: as the data type says, or in 4 bits."""
DEVICE_SETTING: Final = "LOOPWRIGHT_TRAINER_DEVICE"
PROCESSES_SETTING: Final = "LOOPWRIGHT_TRAINER_PROCESSES"
WEIGHTS_SHARE: Final = 0.7
"""Share of a GPU's memory that weights may take for an evaluation."""
_INDICES: Final = re.compile(r"(?:cuda:)?(\d{1,3}(?:,\d{1,3})*)")


@dataclass(frozen=True, slots=True)
class Hardware:
    """The device that a process computes on. Recipes and data types are functions of it.

    Attributes:
        kind: `cuda` or `cpu`.
        name: Name of the GPU or of the processor.
        memory_bytes: Memory of one GPU; on a CPU, the memory that this process may use.
        free_bytes: Memory of it that is free now.
        bf16: A GPU has bfloat16 units (compute capability 8.0 and later). Others emulate it slowly. Always true on
            a CPU, where a measurement decides (`base/dtype.py`).
        capability: Compute capability of a GPU, such as (9, 0); None on a CPU.
        count: GPUs that this process sees; 1 on a CPU.

    """

    kind: DeviceKind
    name: str
    memory_bytes: int
    free_bytes: int
    bf16: bool = True
    capability: tuple[int, int] | None = None
    count: int = 1


def gpu_dtype(hardware: Hardware) -> Dtype:
    """Return the data type of a run on a GPU, unless a setting names another one."""
    return "bfloat16" if hardware.bf16 else "float16"


def mixed_precision(dtype: Dtype) -> Literal["no", "fp16"]:
    """Return accelerate's mixed precision for training a base that was loaded in `dtype`.

    fp16 means autocast and loss scaling (`torch.amp.GradScaler`), because small gradients underflow in float16. Trained
    weights must then be in fp32, as PEFT creates adapters on a float16 base: the scaler refuses float16 gradients. A
    step whose gradients overflow is skipped, and the scale is halved. Other data types train without autocast.
    """
    return "fp16" if dtype == "float16" else "no"


def spreads_over_gpus(weights: int, hardware: Hardware) -> bool:
    """Return whether a model that is only evaluated is spread over all GPUs that its process sees.

    So it is if one of them cannot hold its weights, which take `weights` bytes.
    """
    return hardware.kind == "cuda" and hardware.count > 1 and weights > WEIGHTS_SHARE * hardware.memory_bytes


# --- which GPUs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The parsed setting LOOPWRIGHT_TRAINER_DEVICE.

    Attributes:
        kind: `auto` uses a GPU if there is one.
        indices: The GPUs that the setting names, by number; empty to choose the freest one.

    """

    kind: Literal["auto", "cpu", "cuda"]
    indices: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> DeviceChoice:
        """Return the choice. Raises `ValueError` if `text` is none of auto, cpu, cuda, cuda:N and N,M."""
        setting = text.replace(" ", "").lower()
        match setting:
            case "auto" | "cpu" | "cuda":
                return cls(setting)
        found = _INDICES.fullmatch(setting)
        indices = tuple(int(index) for index in found[1].split(",")) if found else ()
        if not indices or len(set(indices)) < len(indices):
            raise ValueError(
                f"invalid device {text!r}: expected auto, cpu, cuda, cuda:N, or the numbers of several GPUs, "
                "for example 0,1"
            )
        return cls("cuda", indices)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that a process of this deployment may use, before any process uses it.

    Attributes:
        id: How CUDA_VISIBLE_DEVICES names it: a UUID, or a number if nothing more is known.
        free_bytes: Free memory; None if not known, as for a MIG slice.
        busy: Another process computes on it.

    """

    id: str
    name: str = "GPU"
    free_bytes: int | None = None
    busy: bool = False


def select_gpus(choice: DeviceChoice, gpus: Sequence[Gpu], count: int = 1) -> list[Gpu]:
    """Return the GPUs for `count` processes of a run, at most one each; none to use the CPU.

    Numbers in the setting count the GPUs in the order of `gpus`. Without numbers, GPUs that no other process computes
    on come first, then those with the most free memory.

    Raises:
        Misconfigured: The setting asks for a GPU that does not exist.

    """
    if choice.kind == "cpu":
        return []
    missing = [index for index in choice.indices if index >= len(gpus)]
    if missing or (choice.kind == "cuda" and not gpus):
        raise Misconfigured(missing_gpu(choice, len(gpus)))
    if choice.indices:
        return [gpus[index] for index in choice.indices][:count]
    order = sorted(range(len(gpus)), key=lambda i: (gpus[i].busy, -(gpus[i].free_bytes or 0), i))
    return [gpus[index] for index in order[:count]]


def process_count(processes: int | Literal["auto"], choice: DeviceChoice, gpus: int) -> int:
    """Return how many processes train a run on this machine.

    Args:
        processes: LOOPWRIGHT_TRAINER_PROCESSES.
        choice: The device setting. `auto` processes use all GPUs that it allows, at least one process.
        gpus: GPUs that this deployment may use.

    Raises:
        Misconfigured: There are fewer GPUs than processes, but at least one.

    """
    allowed = 0 if choice.kind == "cpu" else len(choice.indices) or gpus
    if processes == "auto":
        return max(1, allowed)
    if 0 < allowed < processes:
        raise Misconfigured(
            f"{PROCESSES_SETTING}={processes}, but {DEVICE_SETTING} allows "
            f"{'only 1 GPU' if allowed == 1 else f'only {allowed} GPUs'} here: each process needs one. Set "
            f"{PROCESSES_SETTING}=auto, or {DEVICE_SETTING}=cpu"
        )
    return processes


def missing_gpu(choice: DeviceChoice, available: int) -> str:
    """Return the message for a setting that asks for more GPUs than there are."""
    wanted = f"GPU {max(choice.indices)}" if choice.indices else "a GPU"
    found = {0: "no NVIDIA GPU is visible here", 1: "only GPU 0 is visible here"}.get(
        available, f"only the GPUs 0 to {available - 1} are visible here"
    )
    return (
        f"{DEVICE_SETTING} asks for {wanted}, but {found}: check that `nvidia-smi` lists it (with Docker, start the "
        f"stack with docker-compose.gpu.yml), or set {DEVICE_SETTING}=auto"
    )
