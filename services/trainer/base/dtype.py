"""In which type a run computes: bfloat16, or float32 where this machine multiplies it faster.

bfloat16 takes half the memory and, where a processor has matrix units for it, a fraction of the time. Others take
twice as long for it as for float32. So both are tried, for some hundredths of a second. What was found is kept with
the run: it goes on in that type, and is trained again in it, wherever that is.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from services.trainer.core.recipe import WantedDtype
from services.trainer.files import write_whole

Dtype: TypeAlias = Literal["bfloat16", "float32"]
DTYPE_FILE = "dtype.json"
OLDER: Final[Dtype] = "bfloat16"
"""Of runs from before this was asked."""
FASTER: Final = 1.2
"""By so much float32 must be faster: it costs memory, and the other operations time."""
SHARE: Final = 0.25
"""Of the memory: more than that the weights may not take in float32."""
ROWS, WIDTH, TIMES = 256, 1024, 5
CGROUP: Final = Path("/sys/fs/cgroup")
MEMORY_LIMITS = (CGROUP / "memory.max", CGROUP / "memory" / "memory.limit_in_bytes")
"""Memory limit of this container, in cgroup v2 and v1."""


def choose_for_run(run: Path, wanted: WantedDtype, base: Path) -> Dtype:
    """Of a run that begins: decides, unless it is decided, and keeps it in the run's folder. Imports torch."""
    if not (run / DTYPE_FILE).exists():
        write_whole(run / DTYPE_FILE, json.dumps({"dtype": resolve(wanted, base)}).encode())
    return of_run(run)


def of_run(run: Path) -> Dtype:
    """As it was decided."""
    file = run / DTYPE_FILE
    kept: Dtype = json.loads(file.read_bytes())["dtype"] if file.exists() else OLDER
    return kept


def resolve(wanted: WantedDtype, base: Path) -> Dtype:
    """As an operator wants it, else as it suits this machine. Imports torch."""
    return fastest(base) if wanted == "auto" else wanted


def fastest(base: Path) -> Dtype:
    """What suits this machine. `base`: the folder with the weights."""
    import torch  # noqa: PLC0415 - seconds, and only a run's process has it loaded anyway

    if torch.cuda.is_available() or 2 * weight_bytes(base) > SHARE * memory_bytes():
        return "bfloat16"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # those that wait for each other spend the processor's time, too
    try:
        return (
            "float32"
            if matmul_seconds(torch.bfloat16) > FASTER * matmul_seconds(torch.float32)
            else "bfloat16"
        )
    finally:
        torch.set_num_threads(threads)


def matmul_seconds(dtype: Any) -> float:
    """Of the processor's time that one matrix product takes at best on one thread: not of the clock's, so that whatever
    else runs here does not decide."""
    import torch  # noqa: PLC0415 - as above

    left, right = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    taken = []
    for _ in range(TIMES):
        began = time.process_time()
        left @ right
        taken.append(time.process_time() - began)
    return min(taken)


def weight_bytes(base: Path) -> int:
    """Bytes of the base's files, which hold bfloat16 or more."""
    return sum(file.stat().st_size for file in base.glob("*.safetensors"))


def memory_bytes() -> int:
    """Return the memory that this process may use, in bytes: the container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [file.read_text().strip() for file in MEMORY_LIMITS if file.exists()]
    return min([machine, *(int(limit) for limit in limits if limit.isdecimal())])
