"""Description of the machine that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> dict[str, str | int]:
    """Return processor, cores available to this process, matrix instructions that torch may use, and versions."""
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, text = line.partition(":")
            facts.setdefault(name.strip(), text.strip())
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "matrix": ", ".join(flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
