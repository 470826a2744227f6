"""The GPU benchmark of the trainer, with tiny bases on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.trainer_gpu.bars import bars
from benchmarks.trainer_gpu.plan import ARMS
from benchmarks.trainer_gpu.processes import PREFIX, read_results

ALL = {(arm.label, workload): {"tokens_per_s": 1.0} for arm in ARMS for workload in arm.workloads}


@pytest.mark.timeout(300)
def test_arms_train_and_compare_on_a_cpu() -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.trainer_gpu",
        "--device",
        "cpu",
        "--tiny",
        "--only",
        "check,ours",
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    figures: dict[str, Any] = report["figures"]
    assert [name for name, one in figures.items() if "error" in one] == []
    assert figures["check/check/check"]["passed"]
    assert figures["ours/tiny/mixed"]["tokens_per_s"] > 0
    assert report["bars"] == [], "they are claims about an H100 or H200"


def test_bars_compare_with_the_best_peer_of_the_same_run() -> None:
    results: dict[tuple[str, str], dict[str, Any]] = {
        **ALL,
        ("check/check", "check"): {"passed": True},
        ("ours/7b", "short"): {"tokens_per_s": 12_600.0},
        ("ours/7b", "long"): {"tokens_per_s": 12_600.0},
        ("trl-tuned/7b", "short"): {"tokens_per_s": 9_000.0},
        ("ours/7b", "kto"): {"tokens_per_s": 130.0},
        ("trl/7b", "kto"): {"tokens_per_s": 60.0},
        ("trl-tuned/7b", "kto"): {"tokens_per_s": 100.0},
        ("ours/7b", "dpo"): {"tokens_per_s": 130.0},
        ("trl/7b", "dpo"): {"tokens_per_s": 101.0},
        ("trl-tuned/7b", "dpo"): {"tokens_per_s": 90.0},
    }
    assert [bar.text for bar in bars(results) if not bar.met] == ["dpo rows: at least 1.3 x TRL's best"]


def test_missing_and_failed_results_meet_no_bar() -> None:
    assert not any(bar.met for bar in bars({}))
    failed = {key: {"error": "OutOfMemoryError"} for key in ALL}
    assert not any(bar.met for bar in bars(failed))


def test_a_crash_keeps_the_results_before_it() -> None:
    output = f'loading\n{PREFIX}{{"workload": "short", "tokens_per_s": 5}}\nRuntimeError: CUDA error\n'
    assert read_results(output) == ({"short": {"tokens_per_s": 5}}, "RuntimeError: CUDA error")
