"""Check the device of runs: `python -m services.trainer.worker.device_check FILE`. Writes a `DeviceReport` to FILE.

The service starts it when it starts. It sees the same GPU as a run's process, describes it, and compiles and executes a
small kernel, as training does: that needs a C compiler, headers and a writable cache.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from services.trainer.base.device import describe, driver_version, list_gpus
from services.trainer.core.device_report import DeviceReport, cpu_report, gpu_report, no_gpu_report
from services.trainer.core.hardware import DeviceChoice
from services.trainer.files import write_whole
from services.trainer.settings import TrainerSettings
from shared.settings import load


def check(setting: str) -> DeviceReport:
    """Return the report of the device that this process sees. Imports torch."""
    import torch  # noqa: PLC0415 - takes seconds, and the service imports this module's neighbours

    try:
        hardware = describe()
    except RuntimeError as error:  # for example if other processes have taken all of its memory
        return no_gpu_report(setting, f"the GPU cannot be used: {error}")
    if hardware.kind == "cpu":
        reason = why_no_gpu()
        if DeviceChoice.parse(setting).kind == "cuda":
            return no_gpu_report(setting, reason)
        return cpu_report(hardware, reason if list_gpus() else "")
    software = f"torch {torch.__version__}, driver {driver_version()}"
    return gpu_report(hardware, software, kernel_error())


def why_no_gpu() -> str:
    """Return why torch sees no GPU."""
    import torch  # noqa: PLC0415 - as above

    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA: install the CUDA build"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return f"torch {torch.__version__} cannot use a GPU: {error}"
    return f"torch {torch.__version__} sees no GPU"


def kernel_error() -> str | None:
    """Compile a kernel for the GPU and execute it. Return the error, or None if the result is right."""
    import torch  # noqa: PLC0415 - as above

    def double_plus_one(values: torch.Tensor) -> torch.Tensor:
        return 2 * values + 1

    values = torch.arange(1000, dtype=torch.float32, device="cuda")
    try:
        computed = torch.compile(double_plus_one, fullgraph=True, dynamic=False)(values)
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises is the result of this check
        return f"{type(error).__name__}: {error}"
    return None if torch.equal(computed, 2 * values + 1) else "a compiled kernel computed wrong values"


def main() -> int:
    """Check the device and write the report."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # one kernel needs no pool of processes
    write_whole(Path(sys.argv[1]), check(load(TrainerSettings).device).to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
