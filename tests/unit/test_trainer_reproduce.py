"""Reproduction of a version: what is refused, what the result says, and that no copy of users' text remains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from services.trainer.files import write_whole
from services.trainer.run import environment
from services.trainer.run.environment import Environment
from services.trainer.run.folder import COMPARISON, CONFIG, FAILURE_REASON, ORIGINAL, ExitCode
from services.trainer.run.run_table import RunConfig
from services.trainer.worker.reproduce import compare, judge
from shared.cloudevents import cloudevent
from shared.commands import CommandResult, Reproduce
from shared.topics import OPERATOR_COMMANDS, OPERATOR_RESULTS
from tests.trainer_factories import LINE, NOW, FakeProcess, batch, revision, run_steps
from tests.unit.test_trainer_lineage import BASE, BOB, TrainedLine

HERE: Environment = {"software": {"torch": "2.9"}, "machine": {"processor": "P", "threads": 1}}
ELSEWHERE: Environment = {"software": {"torch": "3.0"}, "machine": {"processor": "Q", "threads": 1}}


def reproduced(folder: Path) -> int:
    """Stand for a process that has reproduced the version."""
    write_whole(folder / COMPARISON, json.dumps({"reproduced": True, "message": "bit by bit"}).encode())
    return ExitCode.DONE


def still_running(folder: Path) -> None:
    """Stand for a process that has not ended."""


class ReproduceRig:
    """A trainer with two versions. `process` stands for the process that reproduces one."""

    def __init__(self, folder: Path) -> None:
        self.line = TrainedLine(folder)
        self.trainer = self.line.trainer
        self.folders: list[Path] = []
        self.process: Callable[[Path], int | None] = reproduced
        self.trainer.reproducer.start_process = self._start  # type: ignore[assignment]
        self.commands = 0

    def _start(self, folder: Path) -> FakeProcess:
        self.folders.append(folder)
        return FakeProcess(self.process(folder))

    def reproduce(self, version: str) -> None:
        self.commands += 1
        command = Reproduce(line=LINE, command_id=f"c{self.commands}", issued_at=NOW, version=version)
        self.line.rig.log.append(
            cloudevent(OPERATOR_COMMANDS, LINE, command, source="console", ce_id="x", at=NOW, partition=0)
        )
        run_steps(self.trainer, 4)

    def results(self) -> list[CommandResult]:
        records = self.line.rig.log.records(OPERATOR_RESULTS.name)
        return [CommandResult.from_json(record.value) for record in records]

    def leftovers(self) -> list[str]:
        return [path.name for path in self.trainer.settings.folder.glob("reproductions/**/*")]


@pytest.fixture
def rig(tmp_path: Path) -> ReproduceRig:
    return ReproduceRig(tmp_path)


def test_process_gets_the_runs_configuration_and_snapshot(rig: ReproduceRig) -> None:
    seen: dict[str, Any] = {}

    def look(folder: Path) -> int:
        seen["files"] = {path.name for path in folder.iterdir()}
        seen["run"] = RunConfig.from_json((folder / CONFIG).read_text()).run_id
        seen["original"] = {path.name for path in (folder / ORIGINAL).iterdir()}
        return reproduced(folder)

    rig.process = look
    version = rig.line.versions()[0]
    rig.reproduce(version.ref.version)
    (result,) = rig.results()
    assert (result.status, "bit by bit" in result.message) == ("done", True)
    assert seen["run"] == version.run_id
    assert {"train.parquet", "snapshot.json", CONFIG} <= seen["files"]
    assert "gate.json" not in seen["files"] and "loopwright.json" in seen["original"]
    assert rig.leftovers() == []


def test_version_with_erased_rows_is_refused_with_the_reason(rig: ReproduceRig) -> None:
    name = rig.line.names()[0]
    rig.line.erase()
    rig.reproduce(name)
    (result,) = rig.results()
    assert result.status == "refused"
    assert "rows that it was trained on were erased" in result.message
    assert rig.folders == []


@pytest.mark.parametrize(
    ("name", "why"), [(BASE, "was not trained here"), (f"{LINE}@v9-00000000", "has no version")]
)
def test_base_and_unknown_versions_are_refused(rig: ReproduceRig, name: str, why: str) -> None:
    rig.reproduce(name)
    (result,) = rig.results()
    assert (result.status, why in result.message) == ("refused", True)


def test_erasure_ends_reproduction_and_removes_its_folder(rig: ReproduceRig) -> None:
    """I11: the folder holds a copy of users' text. The command is refused afterwards."""
    rig.process = still_running
    rig.reproduce(rig.line.names()[0])
    assert rig.leftovers() and rig.results() == []
    rig.line.erase()
    assert rig.leftovers() == []
    (result,) = rig.results()
    assert (result.status, "erased" in result.message) == ("refused", True)


def test_interrupted_reproduction_starts_again(rig: ReproduceRig) -> None:
    rig.process = still_running
    rig.reproduce(rig.line.names()[0])
    rig.trainer.reproducer.stop()
    assert rig.leftovers() == []
    rig.process = reproduced
    run_steps(rig.trainer, 4)
    assert [result.status for result in rig.results()] == ["done"]


def test_no_run_starts_during_a_reproduction(rig: ReproduceRig) -> None:
    rig.process = still_running
    rig.reproduce(rig.line.names()[0])
    started = len(rig.line.rig.started)
    rig.line.send(batch([revision("r7", "Who is the head of Acme?", "It is Ida Voss who leads.", BOB)], 3))
    assert len(rig.line.rig.started) == started
    rig.trainer.reproducer.process.status = reproduced(rig.folders[-1])  # type: ignore[union-attr]
    run_steps(rig.trainer, 6)
    assert len(rig.line.rig.started) == started + 1


def test_failed_process_is_reported_with_its_reason(rig: ReproduceRig) -> None:
    def fail(folder: Path) -> int:
        write_whole(folder / FAILURE_REASON, b"the loss became NaN")
        return ExitCode.FAILED

    rig.process = fail
    rig.reproduce(rig.line.names()[0])
    rig.process = lambda _: 1
    rig.reproduce(rig.line.names()[1])
    failed, crashed = rig.results()
    assert (failed.status, failed.message.endswith("the loss became NaN")) == ("failed", True)
    assert (crashed.status, "status 1" in crashed.message) == ("failed", True)


# --- comparing ---


def adapter(folder: Path, value: float, **more: float) -> Path:
    """Write an adapter whose weight `a` is filled with `value`, and further weights by name."""
    folder.mkdir()
    weights = {name: np.full((4, 4), fill, np.float32) for name, fill in ({"a": value} | more).items()}
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_equal_files_are_reproduced_bit_by_bit(tmp_path: Path) -> None:
    comparison = compare(adapter(tmp_path / "a", 1.0), adapter(tmp_path / "b", 1.0), [HERE], HERE)
    assert comparison.is_bitwise_equal
    assert (comparison.distance, comparison.differences) == (0.0, [])
    reproduced, message = judge(comparison)
    assert reproduced
    assert message.startswith("bit by bit")


def test_other_weights_in_the_same_environment_are_a_failure(tmp_path: Path) -> None:
    comparison = compare(adapter(tmp_path / "a", 1.0), adapter(tmp_path / "b", 1.001), [HERE], HERE)
    reproduced, message = judge(comparison)
    assert (comparison.is_bitwise_equal, reproduced) == (False, False)
    assert "adapter_model.safetensors differs, the weights by 0.10%" in message


def test_close_weights_suffice_in_another_environment(tmp_path: Path) -> None:
    comparison = compare(adapter(tmp_path / "a", 1.0), adapter(tmp_path / "b", 1.001), [HERE], ELSEWHERE)
    reproduced, message = judge(comparison)
    assert reproduced
    assert "torch 2.9 then, 3.0 now" in message and "processor P then, Q now" in message
    far = compare(adapter(tmp_path / "c", 1.0), adapter(tmp_path / "d", 1.2), [HERE], ELSEWHERE)
    assert not judge(far)[0]


@pytest.mark.parametrize(("value", "reproduced"), [(1.0 + 1e-6, True), (1.009, True), (1.02, False)])
def test_close_weights_suffice_on_the_same_gpu(tmp_path: Path, value: float, reproduced: bool) -> None:
    here: Environment = {"software": {"torch": "2.9"}, "machine": {"device": "NVIDIA H200"}}
    comparison = compare(adapter(tmp_path / "a", 1.0), adapter(tmp_path / "b", value), [here], here)
    found, message = judge(comparison)
    assert found is reproduced
    assert "GPU rounds differently from run to run" in message
    assert ("at most 1%" if reproduced else "more than 1%") in message


def test_weights_with_other_names_have_no_distance(tmp_path: Path) -> None:
    comparison = compare(adapter(tmp_path / "a", 1.0), adapter(tmp_path / "b", 1.0, b=2.0), [], HERE)
    assert comparison.distance is None
    reproduced, message = judge(comparison)
    assert not reproduced
    assert "does not record its software" in message


def test_each_environment_of_a_run_is_recorded_once(tmp_path: Path) -> None:
    upgraded: Environment = {"software": {"torch": "3.0"}, "machine": HERE["machine"]}
    for one in (HERE, HERE, upgraded, HERE):
        environment.record(tmp_path, one)
    assert environment.read(tmp_path) == [HERE, upgraded]
    assert "2 environments" in environment.differences(environment.read(tmp_path), upgraded)[0]
    assert environment.differences([HERE], HERE) == []


def test_environment_contains_no_paths_or_host_names() -> None:
    found = environment.host(1)
    assert found["software"]["torch"] and found["machine"]["processor"]
    assert "/" not in json.dumps(found["software"])
