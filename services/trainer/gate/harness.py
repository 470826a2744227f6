"""Optional tasks of EleutherAI's lm-evaluation-harness, by name (LOOPWRIGHT_TRAINER_GATE_LM_EVAL).

Each version is evaluated in a process of its own (`harness_process.py`), before the gate loads its models. Results are
kept in the run's folder, so an interrupted gate repeats none, and those of the base with its own answers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from services.trainer.core.hardware import DeviceKind, Dtype, Quantization
from services.trainer.files import write_whole
from shared.errors import Misconfigured
from shared.events import canonical_json, sha256

if TYPE_CHECKING:
    from services.trainer.gate.statistics import OutcomePair

PACKAGE: Final = "lm_eval"
SETTING: Final = "LOOPWRIGHT_TRAINER_GATE_LM_EVAL"
MODULE: Final = "services.trainer.gate.harness_process"
CHECK_TIMEOUT_S: Final = 300
POLL_S: Final = 1.0
MAX_ERROR: Final = 400
Scores = Mapping[str, Mapping[str, bool]]
"""Task -> number of the sample -> whether the version is right."""


@dataclass(frozen=True, slots=True)
class HarnessResults:
    """What the harness found on two versions.

    Attributes:
        pairs: By task: whether candidate and stable were right, sample by sample.
        error: Why there are no results; empty if there are.
    """

    pairs: Mapping[str, Sequence[OutcomePair]] = field(default_factory=dict)
    error: str = ""


class HarnessFailed(Exception):
    """The harness could not evaluate a version. The message says why."""


def require_harness(tasks: Sequence[str]) -> None:
    """Require at the trainer's start that the harness is installed and has the tasks. Raises `Misconfigured`."""
    if not tasks:
        return
    if importlib.util.find_spec(PACKAGE) is None:
        raise Misconfigured(
            f"{SETTING}={','.join(tasks)} needs the package {PACKAGE}, which is not installed in the trainer's "
            f"environment: run `pip install {PACKAGE}` there, or remove the setting"
        )
    checked = subprocess.run(
        [sys.executable, "-m", MODULE, "--check", ",".join(tasks)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CHECK_TIMEOUT_S,
        check=False,
    )
    if checked.returncode:
        raise Misconfigured(f"{SETTING}: {_last_line(checked.stderr)}")


def model_args(
    base: Path, folder: Path | None, dtype: Dtype, quantization: Quantization
) -> dict[str, str | bool]:
    """Return the arguments of the harness's model `hf` for a version: an adapter, a whole model, or the base itself."""
    args: dict[str, str | bool] = {"pretrained": str(base), "dtype": dtype, "trust_remote_code": False}
    if folder is not None and (folder / "adapter_config.json").exists():
        args |= {"peft": str(folder)}
    elif folder is not None:
        args |= {"pretrained": str(folder), "tokenizer": str(base)}
    if quantization == "4bit":
        args |= {"load_in_4bit": True}
    return args


def evaluate_version(
    args: Mapping[str, Any],
    tasks: Sequence[str],
    device: DeviceKind,
    file: Path,
    identity: str,
    tick: Callable[[], None],
) -> Scores:
    """Return the results of one version, from `file` if that has them.

    Args:
        args: Arguments of the model.
        tasks: Names of the tasks.
        device: What the process computes on.
        file: Where the results are kept.
        identity: Digest or name of the version.
        tick: Called about once per second. If it raises, the process is stopped.

    Raises:
        HarnessFailed: The process failed.
    """
    key = sha256(canonical_json([identity, sorted(tasks), str(args["dtype"])]))
    kept = json.loads(file.read_bytes()) if file.exists() else {}
    if kept.get("key") == key:
        return dict(kept["scores"])
    file.parent.mkdir(parents=True, exist_ok=True)
    request, output, log = (file.with_suffix(end) for end in (".request", ".output", ".log"))
    batch_size: int | str = "auto" if device == "cuda" else 8
    asked = {"model_args": dict(args), "tasks": list(tasks), "device": device, "batch_size": batch_size}
    write_whole(request, json.dumps(asked).encode())
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.trainer.worker.child", MODULE, str(request), str(output)],
            env=os.environ | {"LOOPWRIGHT_TRAINER_PARENT": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                tick()
                try:
                    process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
    try:
        if process.returncode:
            raise HarnessFailed(_last_line(log.read_text(encoding="utf-8", errors="replace")))
        scores = json.loads(output.read_bytes())
    finally:
        for leftover in (request, output, log):
            leftover.unlink(missing_ok=True)
    write_whole(file, json.dumps({"key": key, "scores": scores}).encode())
    return dict(scores)


def pair_scores(candidate: Scores, stable: Scores) -> dict[str, list[OutcomePair]]:
    """Return the outcomes of two versions by task, over the samples that both have."""
    return {
        task: [(right, stable[task][name]) for name, right in candidate[task].items() if name in stable[task]]
        for task in sorted(candidate.keys() & stable.keys())
    }


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no message")[-MAX_ERROR:]
