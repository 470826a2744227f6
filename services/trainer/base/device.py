"""The device of a run's processes: which GPU they see, and what it can do.

The service chooses the GPU before it starts a process (`visible_devices`), so the process sees only that one: with
several, transformers would split each batch over them. The process then describes what torch sees (`describe`). The
service itself never imports torch.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from services.trainer.core.hardware import DeviceChoice, DeviceKind, Gpu, Hardware, select_gpus
from services.trainer.core.resolved_recipe import Machine

VISIBLE_DEVICES: Final = "CUDA_VISIBLE_DEVICES"
NVIDIA_SMI: Final = "nvidia-smi"
NVIDIA_SMI_TIMEOUT_S: Final = 10.0
DRIVER_FILE: Final = Path("/proc/driver/nvidia/version")
CPUINFO: Final = Path("/proc/cpuinfo")
MEMINFO: Final = Path("/proc/meminfo")
CGROUP: Final = Path("/sys/fs/cgroup")
MEMORY_LIMITS = (CGROUP / "memory.max", CGROUP / "memory" / "memory.limit_in_bytes")
"""Memory limit of this container, in cgroup v2 and v1."""
_LISTED_GPU: Final = re.compile(r"GPU \d+: (?P<name>.+) \(UUID: (?P<id>[^)]+)\)")
_LISTED_SLICE: Final = re.compile(r"MIG (?P<name>.+?) +Device +\d+: \(UUID: (?P<id>[^)]+)\)")
_DRIVER: Final = re.compile(r"(?:Kernel Module|Module for \S+)\s+(\d+(?:\.\d+)+)")
_AVAILABLE: Final = re.compile(r"^MemAvailable:\s+(\d+) kB", re.MULTILINE)


# --- choosing GPUs, without torch -------------------------------------------------------------------------------


def visible_devices(
    setting: str, count: int = 1, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment variables with which `count` processes of a run see the GPUs that `setting` chooses.

    Args:
        setting: LOOPWRIGHT_TRAINER_DEVICE.
        count: Processes of the run that need a GPU each.
        environment: Environment of the service; its CUDA_VISIBLE_DEVICES limits the choice.

    Raises:
        Misconfigured: The setting asks for a GPU that does not exist.

    """
    choice = DeviceChoice.parse(setting)
    if choice.kind == "cpu":
        return {VISIBLE_DEVICES: ""}
    known = usable_gpus(choice, environment)
    return {VISIBLE_DEVICES: ",".join(gpu.id for gpu in select_gpus(choice, known, count))}


def usable_gpus(choice: DeviceChoice, environment: Mapping[str, str] | None = None) -> list[Gpu]:
    """Return the GPUs that this deployment may use, before the choice is made.

    `environment` is that of the service; its CUDA_VISIBLE_DEVICES limits them.
    """
    allowed = (os.environ if environment is None else environment).get(VISIBLE_DEVICES)
    gpus = list_gpus()
    if gpus is None:
        # Without nvidia-smi nothing is known about the GPUs, so they are taken by number, as torch counts them.
        ids = (
            allowed.split(",") if allowed is not None else map(str, range(max(choice.indices, default=0) + 1))
        )
        return [Gpu(name.strip()) for name in ids if name.strip()]
    return allowed_gpus(gpus, allowed)


def allowed_gpus(gpus: list[Gpu], allowed: str | None) -> list[Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES allows, in its order; all of them if it is None.

    Like CUDA, it accepts numbers and beginnings of UUIDs, and ignores everything after the first unknown one.
    """
    if allowed is None:
        return gpus
    found: list[Gpu] = []
    for name in (name.strip() for name in allowed.split(",")):
        if name.isdecimal():
            matching = gpus[int(name) : int(name) + 1]
        else:
            matching = [gpu for gpu in gpus if name and gpu.id.startswith(name)]
        if len(matching) != 1:
            break
        found += matching
    return found


def list_gpus() -> list[Gpu] | None:
    """Return the NVIDIA GPUs of this machine in the order of nvidia-smi; None if nvidia-smi does not exist here.

    A GPU that is divided (MIG) is represented by its slices. Waits up to `NVIDIA_SMI_TIMEOUT_S` for each query. A
    driver that does not answer has no GPUs.
    """
    if shutil.which(NVIDIA_SMI) is None:
        return None
    free = dict(_query("--query-gpu=uuid,memory.free"))
    busy = {uuid for uuid, *_ in _query("--query-compute-apps=gpu_uuid,pid")}
    return parse_gpus(_output("-L"), free, busy)


def parse_gpus(listing: str, free_mib: Mapping[str, str], busy: set[str]) -> list[Gpu]:
    """Return the GPUs in the output of `nvidia-smi -L`.

    Args:
        listing: The output.
        free_mib: Free memory by UUID, in MiB or a text that is no number.
        busy: UUIDs of the GPUs on which processes compute.

    """
    gpus: list[Gpu] = []
    for line in listing.splitlines():
        if whole := _LISTED_GPU.match(line):
            free = free_mib.get(whole["id"], "")
            free_bytes = int(free) << 20 if free.isdecimal() else None
            gpus.append(Gpu(whole["id"], whole["name"], free_bytes, whole["id"] in busy))
        elif part := _LISTED_SLICE.match(line.strip()):
            if gpus and not gpus[-1].id.startswith("MIG-"):
                gpus.pop()  # a divided GPU itself cannot be used
            gpus.append(Gpu(part["id"], part["name"]))
    return gpus


def _query(what: str) -> list[tuple[str, str]]:
    rows = [line.partition(",") for line in _output(what, "--format=csv,noheader,nounits").splitlines()]
    return [(first.strip(), rest.strip()) for first, _, rest in rows if first.strip()]


def _output(*arguments: str) -> str:
    """Return what nvidia-smi prints; nothing if it fails."""
    try:
        process = subprocess.run(
            [NVIDIA_SMI, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=NVIDIA_SMI_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout if process.returncode == 0 else ""


# --- the device of this process ---------------------------------------------------------------------------------


def use_device(setting: str) -> None:
    """Let this process see only the GPU that `setting` chooses. Call it before torch uses a GPU.

    Processes that the service starts do not need it. Raises `Misconfigured` like `visible_devices`.
    """
    os.environ.update(visible_devices(setting))


def device_kind() -> DeviceKind:
    """Return the kind of device that this process computes on. Imports torch."""
    import torch  # noqa: PLC0415 - takes seconds, and only the processes of runs have it loaded anyway

    return "cuda" if torch.cuda.is_available() else "cpu"


def describe() -> Hardware:
    """Return the device that this process computes on. Imports torch."""
    import torch  # noqa: PLC0415 - as above

    if device_kind() == "cpu":
        return describe_cpu()
    free, total = torch.cuda.mem_get_info()
    capability = torch.cuda.get_device_capability()
    limit = gpu_memory_limit(total)
    return Hardware(
        kind="cuda",
        name=torch.cuda.get_device_name(),
        memory_bytes=limit,
        free_bytes=min(free, limit - torch.cuda.memory_reserved()),
        bf16=capability >= (8, 0),
        capability=capability,
        count=torch.cuda.device_count(),
    )


def run_machine(weight_bytes: int, processes: int) -> Machine:
    """Return where a run computes. Imports torch.

    Args:
        weight_bytes: Bytes per weight of the base in memory.
        processes: Processes that train together, each on a device like this one.

    """
    hardware = describe()
    # Others may use the GPU, too. On a CPU, what is free changes with every file that is read.
    memory = hardware.free_bytes if hardware.kind == "cuda" else hardware.memory_bytes
    return Machine(device=hardware.kind, memory=memory, weight_bytes=weight_bytes, processes=processes)


def gpu_memory_limit(total: int) -> int:
    """Return the bytes of a GPU with `total` bytes to which this process has limited itself. Imports torch."""
    import torch  # noqa: PLC0415 - as above

    fraction: Callable[[], float] | None = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return total if fraction is None else int(total * fraction())  # older versions do not tell it


def describe_cpu() -> Hardware:
    """Return this machine's processor as a device. Does not import torch."""
    limit = memory_bytes()
    available = _AVAILABLE.search(MEMINFO.read_text()) if MEMINFO.exists() else None
    free = int(available.group(1)) << 10 if available else limit
    return Hardware(kind="cpu", name=processor_name(), memory_bytes=limit, free_bytes=min(limit, free))


def processor_name() -> str:
    """Return the processor's model name from `/proc/cpuinfo`, or what the `platform` module reports."""
    if CPUINFO.exists():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def memory_bytes() -> int:
    """Return the memory that this process may use, in bytes: the container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [file.read_text().strip() for file in MEMORY_LIMITS if file.exists()]
    return min([machine, *(int(limit) for limit in limits if limit.isdecimal())])


def driver_version() -> str:
    """Return the version of the NVIDIA driver, or `unknown`."""
    found = _DRIVER.search(DRIVER_FILE.read_text()) if DRIVER_FILE.exists() else None
    if found:
        return found.group(1)
    versions = _output("--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return versions[0].strip() if versions else "unknown"
