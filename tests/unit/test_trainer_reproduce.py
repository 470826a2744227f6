"""Training a version again: what is refused, what is said of it, and what is left: nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from services.trainer.commands.reproduce import verdict
from services.trainer.files import write_whole
from services.trainer.run import environment
from services.trainer.run.folder import COMPARISON, CONFIG, FAILURE_REASON, ORIGINAL, ExitCode
from services.trainer.run.run_table import RunConfig
from services.trainer.worker.reproduce import compare
from shared.cloudevents import cloudevent
from shared.commands import CommandResult, Reproduce
from shared.topics import OPERATOR_COMMANDS, OPERATOR_RESULTS
from tests.trainer_factories import LINE, NOW, Scripted, batch, revision, turns
from tests.unit.test_trainer_lineage import BASE, BOB, Stand

HERE = {"software": {"torch": "2.9"}, "machine": {"processor": "P", "threads": 1}}
SAME = {"bitwise": True, "files": {"a.safetensors": ["ab", "ab"]}, "distance": 0.0, "differences": []}


class Again:
    """A trainer that has trained twice, and the processes that train a version again: `does` what each is told."""

    def __init__(self, folder: Path) -> None:
        self.stand = Stand(folder)
        self.trainer = self.stand.trainer
        self.scratches: list[Path] = []
        self.does: Any = self.compared(SAME)
        self.trainer.reproducer.start_child = self._start  # type: ignore[assignment]
        self.given = 0

    def _start(self, scratch: Path) -> Scripted:
        self.scratches.append(scratch)
        return Scripted(self.does(scratch))

    def compared(self, told: dict[str, Any]) -> Any:
        def do(scratch: Path) -> int:
            write_whole(scratch / COMPARISON, json.dumps(told).encode())
            return 0

        return do

    def order(self, version: str) -> None:
        self.given += 1
        made = Reproduce(line=LINE, command_id=f"c{self.given}", issued_at=NOW, version=version)
        self.stand.rig.log.append(
            cloudevent(OPERATOR_COMMANDS, LINE, made, source="console", ce_id="x", at=NOW, partition=0)
        )
        turns(self.trainer, 4)

    def results(self) -> list[CommandResult]:
        found = self.stand.rig.log.records(OPERATOR_RESULTS.name)
        return [CommandResult.from_json(record.value) for record in found]

    def left(self) -> list[str]:
        return [path.name for path in self.trainer.settings.folder.glob("reproductions/**/*")]


@pytest.fixture
def again(tmp_path: Path) -> Again:
    return Again(tmp_path)


def test_it_trains_from_the_runs_own_configuration_and_snapshot_and_leaves_nothing(again: Again) -> None:
    seen: dict[str, Any] = {}

    def look(scratch: Path) -> int:
        seen["files"] = {path.name for path in scratch.iterdir()}
        seen["run"] = RunConfig.from_json((scratch / CONFIG).read_text()).run_id
        seen["original"] = {path.name for path in (scratch / ORIGINAL).iterdir()}
        return int(again.compared(SAME)(scratch))

    again.does = look
    version = again.stand.versions()[0]
    again.order(version.ref.version)
    (result,) = again.results()
    assert (result.status, "bit by bit" in result.message) == ("done", True)
    assert seen["run"] == version.run_id
    assert {"train.parquet", "snapshot.json", CONFIG} <= seen["files"]
    assert "gate.json" not in seen["files"] and "loopwright.json" in seen["original"]
    assert again.left() == []


def test_a_version_whose_rows_were_erased_is_refused_and_the_reason_said(again: Again) -> None:
    name = again.stand.names()[0]
    again.stand.erase()
    again.order(name)
    (result,) = again.results()
    assert result.status == "refused"
    assert "rows that it was trained from were erased" in result.message
    assert again.scratches == []


@pytest.mark.parametrize(
    ("name", "why"), [(BASE, "was not trained here"), (f"{LINE}@v9-00000000", "knows no version")]
)
def test_what_was_never_trained_here_is_refused(again: Again, name: str, why: str) -> None:
    again.order(name)
    (result,) = again.results()
    assert (result.status, why in result.message) == ("refused", True)


def test_an_erasure_ends_it_and_takes_its_folder_and_then_it_is_refused(again: Again) -> None:
    """I11: the scratch folder has users' words in it."""
    again.does = lambda _: None
    again.order(again.stand.names()[0])
    assert again.left() and again.results() == []
    again.stand.erase()
    assert again.left() == []
    (result,) = again.results()
    assert (result.status, "erased" in result.message) == ("refused", True)


def test_what_a_crash_left_of_it_is_removed_and_the_order_stands(again: Again) -> None:
    again.does = lambda _: None
    again.order(again.stand.names()[0])
    again.trainer.reproducer.stop()
    assert again.left() == []
    again.does = again.compared(SAME)
    turns(again.trainer, 4)
    assert [result.status for result in again.results()] == ["done"]


def test_no_run_begins_beside_it(again: Again) -> None:
    again.does = lambda _: None
    again.order(again.stand.names()[0])
    begun = len(again.stand.rig.started)
    again.stand.send(batch([revision("r7", "Who is the head of Acme?", "It is Ida Voss who leads.", BOB)], 3))
    assert len(again.stand.rig.started) == begun
    again.trainer.reproducer.child.status = 0  # type: ignore[union-attr]
    again.compared(SAME)(again.scratches[-1])
    turns(again.trainer, 6)
    assert len(again.stand.rig.started) == begun + 1


def test_how_its_process_fails_is_said(again: Again) -> None:
    def fail(scratch: Path) -> int:
        write_whole(scratch / FAILURE_REASON, b"the loss became NaN")
        return ExitCode.FAILED

    again.does = fail
    again.order(again.stand.names()[0])
    again.does = lambda _: 1
    again.order(again.stand.names()[1])
    one, other = again.results()
    assert (one.status, one.message) == ("failed", "the loss became NaN")
    assert (other.status, "status 1" in other.message) == ("failed", True)


# --- comparing ----------------------------------------------------------------------------------------------------


def weights(folder: Path, value: float, **more: float) -> Path:
    folder.mkdir()
    made = {name: np.full((4, 4), one, np.float32) for name, one in ({"a": value} | more).items()}
    save_file(made, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_the_same_files_are_the_same_bit_by_bit(tmp_path: Path) -> None:
    told = compare(weights(tmp_path / "a", 1.0), weights(tmp_path / "b", 1.0), [HERE], HERE)
    assert (told["bitwise"], told["distance"], told["differences"]) == (True, 0.0, [])
    assert verdict("v", told)[0] == "done"


def test_other_weights_under_the_same_conditions_are_a_failure_that_names_the_file(tmp_path: Path) -> None:
    told = compare(weights(tmp_path / "a", 1.0), weights(tmp_path / "b", 1.001), [HERE], HERE)
    status, message = verdict("v", told)
    assert (told["bitwise"], status) == (False, "failed")
    assert "adapter_model.safetensors is not the same, its weights differ by 0.10%" in message


def test_under_other_conditions_close_weights_will_do_and_what_differed_is_named(tmp_path: Path) -> None:
    other = {"software": {"torch": "3.0"}, "machine": {"processor": "Q", "threads": 1}}
    told = compare(weights(tmp_path / "a", 1.0), weights(tmp_path / "b", 1.001), [HERE], other)
    status, message = verdict("v", told)
    assert status == "done"
    assert "torch 2.9 then, 3.0 now" in message and "processor P then, Q now" in message
    far = compare(weights(tmp_path / "c", 1.0), weights(tmp_path / "d", 1.2), [HERE], other)
    assert verdict("v", far)[0] == "failed"


def test_weights_of_other_names_have_no_distance(tmp_path: Path) -> None:
    told = compare(weights(tmp_path / "a", 1.0), weights(tmp_path / "b", 1.0, b=2.0), [], HERE)
    assert told["distance"] is None
    assert verdict("v", told)[0] == "failed"
    assert "does not say under which software" in verdict("v", told)[1]


def test_a_run_notes_each_environment_once_and_knows_that_there_were_two(tmp_path: Path) -> None:
    other = {"software": {"torch": "3.0"}, "machine": HERE["machine"]}
    for one in (HERE, HERE, other, HERE):
        environment.record(tmp_path, one)
    assert environment.read(tmp_path) == [HERE, other]
    assert "2 turns" in environment.differences(environment.read(tmp_path), other)[0]
    assert environment.differences([HERE], HERE) == []


def test_what_a_run_depends_on_is_named_without_paths_or_hosts() -> None:
    found = environment.host(1)
    assert found["software"]["torch"] and found["machine"]["processor"]
    assert "/" not in json.dumps(found["software"])
