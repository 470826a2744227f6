"""What the start-up check found about the device of runs, in words for operators, with the remedy for a problem.

No I/O: `worker/device_check.py` looks, these functions say what it means.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from services.trainer.core.hardware import DEVICE_SETTING, Hardware, gpu_dtype

GIB: Final = 1 << 30
NO_COMPILER: Final = (
    "install a C compiler (Debian, Ubuntu: apt install gcc g++ libc6-dev), or use docker-compose.gpu.yml"
)
REMEDIES: Final = (
    (("Failed to find C compiler", "No such file or directory: 'gcc'", "InvalidCxxCompiler"), NO_COMPILER),
    (
        ("Python.h", "stdlib.h", "returned non-zero exit status"),
        "install the headers that the C compiler misses (libc6-dev, and the headers of this Python); "
        "device-check.log in the trainer's data folder has its output",
    ),
    (
        ("failed to map segment", "Operation not permitted"),
        "TRITON_CACHE_DIR is on a file system that is mounted noexec: choose another folder",
    ),
    (
        ("Read-only file system", "Permission denied", "No space left on device", "File exists"),
        "the folder for compiled kernels cannot be written: set TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR to "
        "folders that can",
    ),
    (
        ("TooOldForTriton", "too old", "no kernel image is available"),
        "this GPU or its driver is too old for this PyTorch: update the driver, or use another GPU or the CPU",
    ),
)
"""(parts of an error text, what to do), most specific first."""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """Result of the start-up check.

    Attributes:
        text: The device in words, for example `GPU NVIDIA H200, 140 GiB, bfloat16, kernels compiled`.
        problem: Why runs cannot use the device, with the remedy; None if they can.

    """

    text: str
    problem: str | None = None

    @classmethod
    def from_json(cls, text: bytes) -> DeviceReport:
        """Return the report that `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> bytes:
        """Return the report as JSON."""
        return json.dumps(asdict(self)).encode()


def cpu_report(hardware: Hardware, unused: str = "") -> DeviceReport:
    """Return the report of a machine whose runs use the CPU. `unused`: why they do not use a GPU that is there."""
    return DeviceReport(
        f"CPU {hardware.name}, {_gib(hardware.memory_bytes)}" + (f" ({unused})" if unused else "")
    )


def gpu_report(hardware: Hardware, software: str, kernel_error: str | None) -> DeviceReport:
    """Return the report of a GPU.

    Args:
        hardware: The GPU as torch describes it.
        software: Versions of torch, CUDA and the driver.
        kernel_error: Why no kernel could be compiled and executed; None if it could.

    """
    capability = ".".join(map(str, hardware.capability or ()))
    kernels = "kernels compiled" if kernel_error is None else "kernels not compiled"
    text = (
        f"GPU {hardware.name}, {_gib(hardware.memory_bytes)} ({_gib(hardware.free_bytes)} free), capability "
        f"{capability}, {gpu_dtype(hardware)}, {kernels}, {software}"
    )
    problem = (
        None if kernel_error is None else f"{hardware.name} compiles no kernels: {with_remedy(kernel_error)}"
    )
    return DeviceReport(text, problem)


def no_gpu_report(setting: str, reason: str) -> DeviceReport:
    """Return the report of a machine without the GPU that the setting asks for."""
    return DeviceReport("no GPU", f"{DEVICE_SETTING}={setting}, but {with_remedy(reason)}")


def with_remedy(error: str) -> str:
    """Return the last line of an error text, and what to do about it if that is known."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["an error without a message"]
    remedy = next((remedy for parts, remedy in REMEDIES if any(part in error for part in parts)), None)
    telling = next(
        (line for line in lines if any(p in line for parts, _ in REMEDIES for p in parts)), lines[0]
    )
    return f"{telling[:300]}: {remedy}" if remedy else telling[:300]


def _gib(size: int) -> str:
    return f"{size / GIB:.0f} GiB" if size >= 10 * GIB else f"{size / GIB:.1f} GiB"
