"""Data type of a run's computations: bfloat16, or what the device computes faster.

bfloat16 needs half the memory of float32 and, on a processor with matrix units for it, a fraction of the time; other
processors take twice as long for it as for float32. So both are timed, for some hundredths of a second. GPUs without
bfloat16 units use float16, and train with loss scaling (`core/hardware.py`). The choice is kept in the run's folder,
and the run resumes and is reproduced with it on any machine.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.trainer.base.device import describe, memory_bytes
from services.trainer.core.hardware import Dtype, gpu_dtype
from services.trainer.core.recipe import WantedDtype
from services.trainer.files import write_whole

if TYPE_CHECKING:
    import torch

DTYPE_FILE: Final = "dtype.json"
MIN_SPEEDUP: Final = 1.2
"""Speedup that float32 must have: it needs more memory, and other operations take longer with it."""
MAX_MEMORY_SHARE: Final = 0.25
"""Share of the memory that the weights may take in float32."""
ROWS, WIDTH, TRIALS = 256, 1024, 5


def choose_for_run(run: Path, wanted: WantedDtype, base: Path) -> Dtype:
    """Return the run's data type; choose and store it if the run has none yet. Imports torch."""
    if not (run / DTYPE_FILE).exists():
        write_whole(run / DTYPE_FILE, json.dumps({"dtype": resolve(wanted, base)}).encode())
    return of_run(run)


def of_run(run: Path) -> Dtype:
    """Return the data type that was chosen for a run; bfloat16 before that."""
    file = run / DTYPE_FILE
    chosen: Dtype = json.loads(file.read_bytes())["dtype"] if file.exists() else "bfloat16"
    return chosen


def bytes_per_weight(run: Path) -> int:
    """Return the bytes per weight in a run's data type."""
    return 4 if of_run(run) == "float32" else 2


def resolve(wanted: WantedDtype, base: Path) -> Dtype:
    """Return the wanted data type, or for `auto` the faster one on this machine. Imports torch."""
    return fastest(base) if wanted == "auto" else wanted


def fastest(base: Path) -> Dtype:
    """Return the faster data type for a base (a folder with weights) on this machine, within its memory."""
    import torch  # noqa: PLC0415 - takes seconds, and only the process of a run has it loaded anyway

    hardware = describe()
    if hardware.kind == "cuda":
        return gpu_dtype(hardware)
    if 2 * weight_bytes(base) > MAX_MEMORY_SHARE * memory_bytes():
        return "bfloat16"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting threads consume processor time as well
    try:
        faster = matmul_seconds(torch.bfloat16) > MIN_SPEEDUP * matmul_seconds(torch.float32)
        return "float32" if faster else "bfloat16"
    finally:
        torch.set_num_threads(threads)


def matmul_seconds(dtype: torch.dtype) -> float:
    """Return the best CPU time of one matmul, in seconds (`process_time`, so other processes do not count)."""
    import torch  # noqa: PLC0415 - as above

    left, right = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    seconds = []
    for _ in range(TRIALS):
        start = time.process_time()
        left @ right
        seconds.append(time.process_time() - start)
    return min(seconds)


def weight_bytes(base: Path) -> int:
    """Return the size of a base's weight files, which use two bytes per weight or more."""
    return sum(file.stat().st_size for file in base.glob("*.safetensors"))
