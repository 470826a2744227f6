"""The start-up check of the device: what it reports, what operators can do, and that the service never waits for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.base import device
from services.trainer.core.device_report import DeviceReport, gpu_report, with_remedy
from services.trainer.core.hardware import Gpu, Hardware
from services.trainer.files import write_whole
from services.trainer.run import run_table
from services.trainer.worker import device_check, device_monitor
from services.trainer.worker.device_monitor import REPEAT_S, TIMEOUT_S, DeviceMonitor
from shared.adapters import redis_keys
from shared.adapters.clock import ManualClock
from shared.errors import Misconfigured
from shared.live_status import CollectedStatus
from tests.trainer_factories import LINE, FakeProcess, TrainerRig, finish_run, run_steps
from tests.unit.test_trainer_service import corrections, send

H200 = Hardware("cuda", "NVIDIA H200", 140 << 30, 139 << 30, bf16=True, capability=(9, 0))
T4 = Hardware("cuda", "Tesla T4", 16 << 30, 15 << 30, bf16=False, capability=(7, 5))
READY = DeviceReport("GPU NVIDIA H200")
BROKEN = DeviceReport("GPU NVIDIA H200", "it compiles no kernels: install a C compiler")


# --- what the report says -----------------------------------------------------------------------------------------


def test_report_names_gpu_memory_data_type_and_kernels() -> None:
    report = gpu_report(H200, "torch 2.11.0+cu130, driver 580.95.05", None)
    assert report == DeviceReport(
        "GPU NVIDIA H200, 140 GiB (139 GiB free), capability 9.0, bfloat16, kernels compiled, "
        "torch 2.11.0+cu130, driver 580.95.05"
    )
    assert "float16" in gpu_report(T4, "", None).text and "bfloat16" not in gpu_report(T4, "", None).text


def test_gpu_without_compiler_is_a_problem_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error is Triton's own, on a machine without a C compiler."""
    from triton.runtime import build  # noqa: PLC0415 - slow to import

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError) as caught:
        build._build("driver", str(tmp_path / "driver.c"), str(tmp_path), [], [], [], [])
    report = gpu_report(H200, "", f"InductorError: RuntimeError: {caught.value}")
    assert report.problem is not None
    assert "Failed to find C compiler" in report.problem
    assert "apt install gcc" in report.problem
    assert "docker-compose.gpu.yml" in report.problem


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("OSError: [Errno 30] Read-only file system: '/var/lib/loopwright/.triton'", "set TRITON_CACHE_DIR"),
        ("PermissionError: [Errno 13] Permission denied: '/home/user/.triton'", "set TRITON_CACHE_DIR"),
        ("ImportError: /tmp/x.so: failed to map segment from shared object", "mounted noexec"),
        (
            "CalledProcessError: Command '['/usr/bin/gcc', 'a.c']' returned non-zero exit status 1.",
            "libc6-dev",
        ),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)",
            "update the driver",
        ),
    ],
)
def test_known_errors_come_with_their_remedy(error: str, remedy: str) -> None:
    text = with_remedy(f"Traceback\n{error}\nSet TORCHDYNAMO_VERBOSE=1")
    assert text.startswith(error[:300])
    assert remedy in text


def test_unknown_error_is_passed_on() -> None:
    assert with_remedy("something new\nand more") == "something new"


# --- the process --------------------------------------------------------------------------------------------------


def use_gpu(monkeypatch: pytest.MonkeyPatch, hardware: Hardware, error: str | None) -> None:
    monkeypatch.setattr(device_check, "describe", lambda: hardware)
    monkeypatch.setattr(device_check, "kernel_error", lambda: error)


def test_check_reports_a_gpu_and_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(monkeypatch, H200, None)
    assert device_check.check("auto").problem is None
    use_gpu(monkeypatch, H200, "RuntimeError: Failed to find C compiler.")
    assert "C compiler" in str(device_check.check("auto").problem)


def test_gpu_that_cannot_be_described_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Hardware:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(device_check, "describe", fail)
    assert "out of memory" in str(device_check.check("auto").problem)


def test_machine_without_gpu_is_ready_unless_the_setting_asks_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_check.check("auto").problem is None
    assert device_check.check("auto").text.startswith("CPU ")
    problem = device_check.check("cuda").problem
    assert problem is not None
    assert problem.startswith("LOOPWRIGHT_TRAINER_DEVICE=cuda, but ")


def test_unused_gpu_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PyTorch without CUDA on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(device_check, "list_gpus", lambda: [Gpu("GPU-aaaa")])
    report = device_check.check("auto")
    assert report.problem is None
    assert "built without CUDA: install the CUDA build" in report.text


def test_process_writes_its_report(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "services.trainer.worker.device_check", str(tmp_path / "device.json")],
        check=True,
        env=device_monitor.launcher.process_environment("cpu"),
    )
    report = DeviceReport.from_json((tmp_path / "device.json").read_bytes())
    assert report.text.startswith("CPU ") and report.problem is None


# --- the service --------------------------------------------------------------------------------------------------


class MonitorRig:
    """A monitor whose check is simulated."""

    def __init__(self, folder: Path, setting: str = "cuda") -> None:
        self.clock = ManualClock()
        self.processes: list[FakeProcess] = []
        self.reports: list[DeviceReport] = []
        self.monitor = DeviceMonitor(setting, folder, self.clock, self._start, self.reports.append)

    def _start(self, report: Path, setting: str) -> Any:
        self.processes.append(FakeProcess(None))
        return self.processes[-1]

    def finish(self, report: DeviceReport | None, status: int = 0) -> None:
        """Let the check in progress end."""
        if report is not None:
            write_whole(self.monitor.folder / device_monitor.REPORT, report.to_json())
        self.processes[-1].status = status
        self.monitor.poll()


def test_service_does_not_wait_for_the_check(tmp_path: Path) -> None:
    rig = MonitorRig(tmp_path)
    for _ in range(5):
        rig.monitor.poll()
    assert (len(rig.processes), rig.monitor.problem, rig.reports) == (1, None, [])
    rig.finish(READY)
    assert (rig.monitor.report, rig.reports) == (READY, [READY])
    rig.clock.advance(10 * REPEAT_S)
    rig.monitor.poll()
    assert len(rig.processes) == 1, "one that passed is not repeated"


def test_check_is_repeated_while_there_is_a_problem(tmp_path: Path) -> None:
    rig = MonitorRig(tmp_path)
    rig.monitor.poll()
    rig.finish(BROKEN)
    assert rig.monitor.problem == BROKEN.problem
    rig.monitor.poll()
    assert len(rig.processes) == 1
    rig.clock.advance(REPEAT_S)
    rig.monitor.poll()
    rig.finish(READY)
    assert (len(rig.processes), rig.monitor.problem) == (2, None)


def test_check_that_crashes_or_hangs_is_a_problem(tmp_path: Path) -> None:
    rig = MonitorRig(tmp_path)
    rig.monitor.poll()
    (tmp_path / "device-check.log").write_text("loading\nImportError: libcudart.so.13\n")
    rig.finish(None, status=1)
    assert "libcudart.so.13" in str(rig.monitor.problem)
    rig.clock.advance(REPEAT_S)
    rig.monitor.poll()
    rig.clock.advance(TIMEOUT_S + 1)
    rig.monitor.poll()
    assert "did not answer" in str(rig.monitor.problem)
    assert rig.processes[-1].status == 143, "the process was ended"


def test_missing_gpu_is_a_problem_without_a_process(tmp_path: Path) -> None:
    rig = MonitorRig(tmp_path)

    def missing(report: Path, setting: str) -> Any:
        raise Misconfigured("LOOPWRIGHT_TRAINER_DEVICE asks for a GPU, but no NVIDIA GPU is visible here")

    rig.monitor.start_process = missing
    rig.monitor.poll()
    assert "no NVIDIA GPU is visible" in str(rig.monitor.problem)


@pytest.mark.parametrize("setting", ["auto", "cpu"])
def test_machine_without_gpu_needs_no_process(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_monitor, "DRIVER_FILE", tmp_path / "none")
    monkeypatch.setattr(device_monitor, "list_gpus", lambda: None)
    rig = MonitorRig(tmp_path, setting)
    rig.monitor.poll()
    assert rig.processes == []
    assert rig.reports[0].text.startswith("CPU ") and rig.reports[0].problem is None


def test_no_run_starts_while_the_device_has_a_problem(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path, finish_run)
    send(rig, corrections())
    trainer = rig.trainer()
    trainer.device.report = BROKEN
    run_steps(trainer, 6)
    assert rig.started == []
    progress = (rig.cache.get(redis_keys.run_progress(LINE)) or b"").decode()
    assert "install a C compiler" in progress and '"waiting"' in progress
    trainer.device.report = READY
    rig.clock.advance(60)
    run_steps(trainer, 6)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]
    collected = CollectedStatus.from_json(rig.cache.get(redis_keys.collected(LINE)))
    assert collected is not None and collected.device == READY.text


def test_check_sees_the_gpu_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "list_gpus", lambda: [Gpu("GPU-aaaa", busy=True), Gpu("GPU-bbbb")])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = device_monitor.launcher.process_environment("auto")
    assert seen["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"
