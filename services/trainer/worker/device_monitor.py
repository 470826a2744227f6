"""The service's view of the device of runs: starts the check, and keeps its result.

The service does not wait for the check. While there is a problem no run's process starts, and the check is repeated.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from services.trainer.base.device import DRIVER_FILE, describe_cpu, list_gpus
from services.trainer.core.device_report import DeviceReport, cpu_report, no_gpu_report
from services.trainer.core.hardware import DeviceChoice
from services.trainer.files import remove
from services.trainer.worker import launcher
from shared.errors import Misconfigured
from shared.ports import Clock

REPORT: Final = "device.json"
REPEAT_S: Final = 60.0
"""Time between two checks while there is a problem."""
TIMEOUT_S: Final = 600.0
"""Time after which a check that has not ended is ended. Compiling a kernel for the first time takes seconds."""
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class DeviceMonitor:
    """Checks the device that the setting LOOPWRIGHT_TRAINER_DEVICE chooses.

    Attributes:
        setting: The setting.
        folder: Where the check writes its report and its log.
        start_process: Starts the check, which writes to the file that it is given.
        on_report: Called with each new report.

    """

    setting: str
    folder: Path
    clock: Clock
    start_process: Callable[[Path, str], subprocess.Popen[bytes]] = launcher.start_device_check
    on_report: Callable[[DeviceReport], None] = lambda _: None
    report: DeviceReport | None = None
    """Result of the newest check; None during the first one."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started_ms: int | None = field(default=None, init=False)

    @property
    def problem(self) -> str | None:
        """Why runs cannot use the device, or None if they can or if that is not known yet."""
        return None if self.report is None else self.report.problem

    def poll(self) -> None:
        """Start a check if one is due, or take the result of the one in progress. Never waits for it."""
        now_ms = self.clock.now_ms()
        if self.process is None:
            due = self.started_ms is None or (
                self.problem is not None and now_ms - self.started_ms >= REPEAT_S * 1000
            )
            if due:
                self.started_ms = now_ms
                self._start()
            return
        status = self.process.poll()
        if status is None and self.started_ms is not None and now_ms - self.started_ms > TIMEOUT_S * 1000:
            launcher.stop(self.process)
            self.process = None
            self._set(no_gpu_report(self.setting, f"the GPU did not answer within {TIMEOUT_S:.0f} s"))
        elif status is not None:
            self.process = None
            self._set(self._result(status))

    def stop(self) -> None:
        """End the check in progress."""
        if self.process is not None:
            launcher.stop(self.process)
            self.process = None

    def _start(self) -> None:
        known = self._without_process()
        if known is not None:
            self._set(known)
            return
        remove(self.folder / REPORT)
        try:
            self.process = self.start_process(self.folder / REPORT, self.setting)
        except Misconfigured as error:
            self._set(DeviceReport("no GPU", str(error)))

    def _without_process(self) -> DeviceReport | None:
        """Return the report of a machine without a GPU, or of one whose GPU is not wanted; None if there may be one.

        That spares these machines a process that imports torch.
        """
        choice = DeviceChoice.parse(self.setting)
        if choice.kind == "cpu":
            return cpu_report(describe_cpu())
        if choice.kind == "auto" and not DRIVER_FILE.exists() and not list_gpus():
            return cpu_report(describe_cpu())
        return None

    def _result(self, status: int) -> DeviceReport:
        file = self.folder / REPORT
        if status == 0 and file.exists():
            return DeviceReport.from_json(file.read_bytes())
        return no_gpu_report(self.setting, f"its check ended with status {status}: {self._last_line()}")

    def _last_line(self) -> str:
        file = self.folder / launcher.DEVICE_CHECK_LOG
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "no output")

    def _set(self, report: DeviceReport) -> None:
        if report == self.report:
            return
        self.report = report
        level = log.info if report.problem is None else log.error
        level("device_checked", device=report.text, problem=report.problem)
        self.on_report(report)
