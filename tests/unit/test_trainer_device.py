"""Which GPU a run's processes see, what the device can do, and the data type that follows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.base import device, dtype
from services.trainer.base.device import allowed_gpus, list_gpus, parse_gpus, visible_devices
from services.trainer.core.hardware import (
    DeviceChoice,
    Gpu,
    Hardware,
    gpu_dtype,
    mixed_precision,
    select_gpus,
)
from services.trainer.run import environment
from services.trainer.settings import TrainerSettings
from services.trainer.worker import launcher
from shared.errors import Misconfigured
from shared.settings import load

GIB = 1 << 30
IDS = ("GPU-aaaa", "GPU-bbbb", "GPU-cccc")
LISTING = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
GPU 1: Tesla T4 (UUID: GPU-bbbb)
GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-cccc)
  MIG 1g.5gb      Device  0: (UUID: MIG-1111)
  MIG 2g.10gb     Device  1: (UUID: MIG-2222)
"""
"""Output of `nvidia-smi -L`."""


def gpus(*free_gib: int, busy: Sequence[int] = ()) -> list[Gpu]:
    return [
        Gpu(IDS[n], f"GPU {n}", free * GIB, n in busy) for n, free in enumerate(free_gib)
    ]  # fmt: skip


def chosen(setting: str, available: Sequence[Gpu], count: int = 1) -> list[str]:
    return [gpu.id for gpu in select_gpus(DeviceChoice.parse(setting), available, count)]


# --- the setting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "free", "busy", "expected"),
    [
        ("auto", (), (), []),
        ("auto", (10,), (), ["GPU-aaaa"]),
        ("auto", (10, 40, 20), (), ["GPU-bbbb"]),
        ("auto", (10, 40, 20), (1,), ["GPU-cccc"]),
        ("auto", (10, 40, 20), (0, 1, 2), ["GPU-bbbb"]),
        ("auto", (10, 10, 10), (), ["GPU-aaaa"]),
        ("cuda", (10, 40), (), ["GPU-bbbb"]),
        ("cuda:0", (10, 40), (0,), ["GPU-aaaa"]),
        ("1,0", (10, 40), (), ["GPU-bbbb"]),
        ("cpu", (10, 40), (), []),
    ],
)
def test_setting_chooses_the_gpu(
    setting: str, free: Sequence[int], busy: Sequence[int], expected: list[str]
) -> None:
    assert chosen(setting, gpus(*free, busy=busy)) == expected


def test_several_processes_get_a_gpu_each() -> None:
    assert chosen("auto", gpus(10, 40, 20), count=2) == ["GPU-bbbb", "GPU-cccc"]
    assert chosen("2,0", gpus(10, 40, 20), count=2) == ["GPU-cccc", "GPU-aaaa"]


@pytest.mark.parametrize("setting", ["cuda", "cuda:2", "0,2"])
def test_missing_gpu_is_an_error_with_a_remedy(setting: str) -> None:
    available = [] if setting == "cuda" else gpus(10, 10)
    with pytest.raises(Misconfigured, match=r"docker-compose.gpu.yml.*LOOPWRIGHT_TRAINER_DEVICE=auto"):
        chosen(setting, available)


@given(st.text(max_size=12) | st.from_regex(r"(cuda:)?\d(,\d)*", fullmatch=True))
def test_setting_is_valid_or_refused_with_the_forms(text: str) -> None:
    choice = None
    with suppress(ValueError):
        choice = DeviceChoice.parse(text)
    if choice is None:
        with pytest.raises(ValueError, match="expected auto, cpu, cuda, cuda:N"):
            DeviceChoice.parse(text)
    else:
        assert choice.kind in {"auto", "cpu", "cuda"}
        assert len(set(choice.indices)) == len(choice.indices)


def test_invalid_device_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_TRAINER_DEVICE", "gpu0")
    with pytest.raises(Misconfigured, match="invalid device 'gpu0'"):
        load(TrainerSettings)


# --- what a process sees ------------------------------------------------------------------------------------------


def test_divided_gpu_is_replaced_by_its_slices() -> None:
    found = parse_gpus(LISTING, {"GPU-aaaa": "100", "GPU-bbbb": "[N/A]", "GPU-cccc": "5"}, {"GPU-bbbb"})
    assert found == [
        Gpu("GPU-aaaa", "NVIDIA H200", 100 << 20),
        Gpu("GPU-bbbb", "Tesla T4", None, busy=True),
        Gpu("MIG-1111", "1g.5gb"),
        Gpu("MIG-2222", "2g.10gb"),
    ]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (None, list(IDS)),
        ("", []),
        ("1", ["GPU-bbbb"]),
        ("2,0", ["GPU-cccc", "GPU-aaaa"]),
        ("GPU-b", ["GPU-bbbb"]),
        ("GPU-", []),
        ("0,7,1", ["GPU-aaaa"]),
        ("-1", []),
    ],
)
def test_visible_devices_of_the_service_limit_the_choice(allowed: str | None, expected: list[str]) -> None:
    assert [gpu.id for gpu in allowed_gpus(gpus(1, 2, 3), allowed)] == expected


@pytest.mark.parametrize("setting", ["auto", "cuda", "cuda:1", "0,1", "1,0"])
@pytest.mark.parametrize("allowed", [None, "0,1", "1,0,2"])
@pytest.mark.parametrize("listed", [gpus(10, 40, 20), None])
def test_process_sees_one_gpu(
    monkeypatch: pytest.MonkeyPatch, setting: str, allowed: str | None, listed: list[Gpu] | None
) -> None:
    """TRL refuses to train with several visible GPUs, unless a launcher started the process."""
    monkeypatch.setattr(device, "list_gpus", lambda: listed)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    seen = launcher.process_environment(setting)["CUDA_VISIBLE_DEVICES"]
    assert seen and "," not in seen
    assert seen.startswith("GPU-") == (listed is not None)


def test_numbers_count_the_gpus_that_the_service_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "list_gpus", lambda: gpus(10, 40, 20))
    for allowed, expected in (("2,0", "GPU-cccc"), ("1", "GPU-bbbb")):
        assert visible_devices("cuda:0", environment={"CUDA_VISIBLE_DEVICES": allowed}) == {
            "CUDA_VISIBLE_DEVICES": expected
        }
    with pytest.raises(Misconfigured, match="only GPU 0 is visible"):
        visible_devices("cuda:1", environment={"CUDA_VISIBLE_DEVICES": "1"})


def test_cpu_hides_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert launcher.process_environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""


def stand_in_for_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_nvidia_smi(
        tmp_path,
        monkeypatch,
        'case "$1" in\n'
        "-L) echo 'GPU 0: NVIDIA H200 (UUID: GPU-aaaa)'; echo 'GPU 1: NVIDIA H200 (UUID: GPU-bbbb)' ;;\n"
        "--query-gpu*) echo 'GPU-aaaa, 140000'; echo 'GPU-bbbb, 130000' ;;\n"
        "--query-compute*) echo 'GPU-aaaa, 4711' ;;\nesac",
    )
    assert list_gpus() == [
        Gpu("GPU-aaaa", "NVIDIA H200", 140000 << 20, busy=True),
        Gpu("GPU-bbbb", "NVIDIA H200", 130000 << 20),
    ]
    assert visible_devices("auto", environment={}) == {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}


def test_broken_driver_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert list_gpus() == []
    assert visible_devices("auto", environment={}) == {"CUDA_VISIBLE_DEVICES": ""}


# --- data types ---------------------------------------------------------------------------------------------------


def gpu(capability: tuple[int, int]) -> Hardware:
    return Hardware("cuda", "GPU", 16 * GIB, 15 * GIB, bf16=capability >= (8, 0), capability=capability)


@pytest.mark.parametrize(
    ("capability", "expected", "precision"),
    [
        ((7, 0), "float16", "fp16"),  # V100
        ((7, 5), "float16", "fp16"),  # T4
        ((8, 0), "bfloat16", "no"),  # A100
        ((8, 9), "bfloat16", "no"),  # L4
        ((9, 0), "bfloat16", "no"),  # H100, H200
        ((12, 0), "bfloat16", "no"),
    ],
)
def test_gpu_without_bfloat16_trains_in_float16_with_loss_scaling(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capability: tuple[int, int],
    expected: str,
    precision: str,
) -> None:
    monkeypatch.setattr(dtype, "describe", lambda: gpu(capability))
    chosen_type = dtype.choose_for_run(tmp_path, "auto", tmp_path)
    assert (chosen_type, mixed_precision(chosen_type)) == (expected, precision)
    assert gpu_dtype(gpu(capability)) == expected


def fake_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Let torch report one GPU."""
    for name, value in {
        "is_available": True,
        "mem_get_info": (15 * GIB, 16 * GIB),
        "get_device_capability": capability,
        "get_device_name": "Tesla T4",
        "device_count": 1,
        "get_per_process_memory_fraction": 1.0,
        "memory_reserved": 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)


def test_gpu_is_described_by_what_torch_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, (7, 5))
    assert device.describe() == Hardware(
        "cuda", "Tesla T4", 16 * GIB, 15 * GIB, bf16=False, capability=(7, 5), count=1
    )


def test_memory_of_a_gpu_is_what_the_process_allows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, (8, 0))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 0.5)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: GIB)
    found = device.describe()
    assert (found.memory_bytes, found.free_bytes) == (8 * GIB, 7 * GIB)


def test_cpu_is_described_with_its_memory_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1048576\n")
    monkeypatch.setattr(device, "MEMORY_LIMITS", (limit,))
    found = device.describe_cpu()
    assert (found.kind, found.memory_bytes, found.capability) == ("cpu", 1048576, None)
    assert 0 < found.free_bytes <= found.memory_bytes


def test_memory_is_the_containers_limit_or_the_machines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "MEMORY_LIMITS", (limit,))
    machine = device.memory_bytes()
    limit.write_text("max\n")
    assert device.memory_bytes() == machine
    limit.write_text("1048576\n")
    assert device.memory_bytes() == 1048576


def test_environment_of_a_gpu_names_cuda_cudnn_and_the_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n")
    monkeypatch.setattr(device, "DRIVER_FILE", version)
    assert not {"cuda", "cudnn", "driver"} & set(environment.host(1)["software"])
    fake_cuda(monkeypatch, (7, 5))
    found = environment.host(1)
    assert {"cuda", "cudnn"} <= set(found["software"])
    assert found["software"]["driver"] == "580.95.05"
    assert (found["machine"]["device"], found["machine"]["gpu_capability"]) == ("Tesla T4", "7.5")
