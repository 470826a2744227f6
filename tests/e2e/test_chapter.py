"""The notebook chapter, run by its documented command with real Kafka, Redis and services and the tests' model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from deploy.local.services import SERVICES, port_setting
from deploy.local.state_file import owner_pid

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 900
TARGETS = {
    "Tell me about Mars.": "Mars is the fourth planet. Include details about its atmosphere.",
    "What is AI?": "AI is automation. Mention machine learning and deep learning.",
    "What is Python?": "Python is a snake. Mention that Python is a programming language.",
}
"""Expected targets, independent of the code under test."""


@pytest.mark.timeout(SECONDS + 60)
def test_chapter_trains_its_targets_and_serves_the_model(tmp_path: Path, tiny_model: Path) -> None:
    root = tmp_path / "a chapter"
    servers = {"KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL"}
    # Any free ports, because another stack may use the default ones.
    ports = {port_setting(service): "0" for service in SERVICES}
    process = subprocess.run(
        [sys.executable, "-m", "examples.chapter", "--root", str(root)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in servers}
        | ports
        | {"LOOPWRIGHT_BASE_MODEL": str(tiny_model)}
        | {"LOOPWRIGHT_TRAINER_REPLAY_PROMPTS": "2", "LOOPWRIGHT_TRAINER_GATE_EVAL_PROMPTS": "4"}
        | {"LOOPWRIGHT_TRAINER_GATE_SKILL_PROMPTS": "1", "LOOPWRIGHT_TRAINER_GATE_SAFETY_PROMPTS": "4"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    accepted = [int(count) for count in re.findall(r"(\d+) accepted, ", process.stdout)]
    late_duplicates = sum(int(count) for count in re.findall(r"outcomes: .*duplicate (\d+)", process.stdout))
    assert accepted[0] == 3
    assert sum(accepted) == 3 + late_duplicates, "each row of the second import is a duplicate"
    summary = json.loads((root / "summary.json").read_text())
    assert summary["targets"] == TARGETS
    dataset = pq.read_table(summary["dataset"]).to_pylist()
    assert sorted(row["answer"] for row in dataset) == sorted(TARGETS.values())
    assert summary["verdict"] == "inconclusive", "three rows prove nothing, so the version was not rolled out"
    assert f"$ loopwright rollout pin {summary['version']}" in process.stdout
    with safe_open(Path(summary["model"]) / "adapter_model.safetensors", "pt") as weights:
        trained = [name for name in weights.keys() if weights.get_tensor(name).any()]  # noqa: SIM118 - no mapping
    assert any("lora_B" in name for name in trained), "lora_B of an untrained adapter is all zeros"
    assert summary["answered_by"] == [summary["version"]]
    assert set(summary["after"]) == set(TARGETS)
    assert owner_pid(root) is None, "the stack was stopped"
