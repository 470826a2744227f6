"""Data type of the weights in memory: what the setting names, or the faster one on this machine. Imports torch.

bfloat16 halves the memory of float32. A processor with instructions for it is also faster with it; all others emulate
it and take several times as long as for float32 (measured on an AVX2 processor: 4 times at 32 rows). Both are timed,
for some hundredths of a second, because processors do not report which of the two is faster.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import torch

from services.inference.engine.memory import free_bytes

MIN_SPEEDUP: Final = 1.2
"""Speedup that float32 must have, because it takes more memory."""
MAX_MEMORY_SHARE: Final = 0.25
"""Share of the free memory that the base's weights may take in float32. Versions need theirs as well."""
ROWS, WIDTH, TRIALS = 32, 1024, 5
"""Answers that generate at once, and the width of the timed layer."""


def choose_dtype(setting: str, folder: Path, device: str) -> torch.dtype:
    """Return the data type to load a base in.

    Args:
        setting: `auto`, or the name of a torch type.
        folder: Files of the base.
        device: `cpu` or `cuda`.

    """
    if setting != "auto":
        chosen: torch.dtype = getattr(torch, setting)
        return chosen
    if device != "cpu":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if 2 * weights > MAX_MEMORY_SHARE * free_bytes(device):
        return torch.bfloat16
    faster = layer_seconds(torch.bfloat16) > MIN_SPEEDUP * layer_seconds(torch.float32)
    return torch.float32 if faster else torch.bfloat16


def layer_seconds(dtype: torch.dtype) -> float:
    """Return the best CPU time of one linear layer, in seconds (`process_time`, so other processes do not count)."""
    rows, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    seconds = []
    for _ in range(TRIALS):
        start = time.process_time()
        torch.nn.functional.linear(rows, weight)
        seconds.append(time.process_time() - start)
    return min(seconds)
