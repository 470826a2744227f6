"""Lineage: from a version down to the events it was trained from, from an event up to versions, one version beside
another; true after erasures and after the loss of a disk, and without any text."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.trainer.api.lineage_routes import LineageQueries, add_lineage_routes
from services.trainer.dataset import batch_table, snapshot
from services.trainer.dataset.holdout import is_held_out
from services.trainer.files import write_whole
from services.trainer.run.folder import ARTIFACT, GATE_RESULT
from services.trainer.run.run_table import RunConfig
from services.trainer.service import Trainer
from shared.adapters.http import add_service_routes
from shared.adapters.in_memory import InMemoryLogReader
from shared.cloudevents import cloudevent
from shared.events import Batch, ErasureReport
from shared.telemetry import Readiness
from shared.topics import ERASURE_REPORTS, TRAINING_BATCHES
from shared.versions import Figure, GateReport, ModelVersion
from tests.trainer_factories import LINE, NOW, Rig, batch, revision, turns

BASE = f"{LINE}@base-{'ab' * 4}"
NAMES = [f"user-{i}" for i in range(40)]
ANN, BOB = [user for user in NAMES if not is_held_out(LINE, user)][:2]
MEASURING = next(user for user in NAMES if is_held_out(LINE, user))
SECRET = "Zanzibarquux"


def finish(folder: Path) -> int:
    """As a run's process does, from the table on the disk; each run's gate has other figures."""
    config = RunConfig.from_json((folder / "config.json").read_text())
    with closing(sqlite3.connect(folder.parent.parent / "trainer.sqlite3")) as db:
        taken = snapshot.build(LINE, batch_table.current_examples(db, config.through), config.through)
    snapshot.write(folder, taken, 10)
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / ARTIFACT).mkdir(exist_ok=True)
    environments = [{"software": {"torch": f"2.{len(taken.train)}"}, "machine": {"threads": 1}}]
    facts = {"recipe": {"rank": 16, "rows": len(taken.train)}, "environments": environments}
    write_whole(folder / ARTIFACT / "loopwright.json", json.dumps(facts | {"run": folder.name}).encode())
    wins = Figure(name="win_rate", n=30, value=0.5 + len(taken.train) / 10, low=0.4, high=0.9)
    report = GateReport(verdict="passed", figures=(wins,), gated_against=BASE)
    write_whole(folder / GATE_RESULT, report.model_dump_json().encode())
    return 0


class Stand:
    """A trainer that has trained twice: the second time with one row more, one less, and one that changed."""

    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder, finish)
        self.trainer: Trainer = self.rig.trainer(examples=1)
        self.trainer.versions.announce_base(self.trainer.base, 0)
        self.send(
            batch(
                [
                    revision("r0", "Who founded Acme?", f"It was {SECRET} who did.", ANN),
                    revision("r1", "Where is the head office?", "In the harbour of Kiel.", BOB),
                    revision("r2", "How long is the warranty?", "Six years from today.", MEASURING),
                    revision("r3", "Is it red?", "Thumbs", ANN, kind="comment"),
                ]
            )
        )
        self.send(
            batch(
                [
                    revision("r1", "Where is the head office?", "In the port of Bremen.", BOB, revision=2),
                    revision("r4", "Which year was it founded?", "In the year 1911 it was.", BOB),
                ],
                2,
            )
        )
        self.answers = LineageQueries(
            self.trainer.settings, lambda topic: InMemoryLogReader(self.rig.log, [topic]), self.trainer.store
        )

    def send(self, *batches: Batch) -> None:
        for one in batches:
            self.rig.log.append(
                cloudevent(
                    TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0
                )
            )
        turns(self.trainer)

    def erase(self, **more: str) -> None:
        """All of Ann's, as the processor leaves and reports it; or, with `more`, a late retraction."""
        fields = {
            "request_id": "q1",
            "subject": ANN,
            "batches": {f"{LINE}-0-1": 1},
            "completed_at": NOW,
        } | more
        told = ErasureReport.model_validate(
            {"line": LINE, "service": "processor", "partition": 0, "partitions": 1} | fields
        )
        left = [revision("r1", "Where is the head office?", "In the harbour of Kiel.", BOB)]
        self.send(batch(left, 1, rewrite=1))
        self.rig.log.append(
            cloudevent(
                ERASURE_REPORTS, told.request_id, told, source="processor", ce_id="0", at=NOW, partition=0
            )
        )
        turns(self.trainer)

    def versions(self) -> list[ModelVersion]:
        return [version for version in self.trainer.versions.versions() if version.number is not None]

    def names(self) -> tuple[str, str]:
        one, other = (version.ref.version for version in self.versions())
        return one, other

    async def ask(self, path: str, **params: str) -> httpx.Response:
        app = add_lineage_routes(add_service_routes(FastAPI(), Readiness("log")), self.answers)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8004") as http:
            return await http.get(path, params=params)


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def events(told: dict[str, Any]) -> dict[str, set[tuple[str, str, str]]]:
    return {
        one["batch_id"]: {
            (response["response_id"], event["event_id"], event["user"])
            for response in one["responses"]
            for event in response["events"]
        }
        for one in told["batches"]
    }


def test_a_version_is_followed_down_to_the_events_that_trained_it(stand: Stand) -> None:
    told = stand.answers.down(stand.names()[0])
    assert events(told) == {f"{LINE}-0-1": {("r0", "e-r0", ANN), ("r1", "e-r1", BOB)}}
    assert told["counts"] == {"responses": 2, "events": 2, "users": 2, "kinds": {"correction": 2}}
    assert (told["reproducible"], told["run"]["stage"], told["verdict"]) == (True, "published", "passed")
    assert told["dataset"]["digest"] == stand.versions()[0].dataset.digest  # type: ignore[union-attr]


def test_a_later_version_names_the_batch_that_brought_the_newer_revision(stand: Stand) -> None:
    assert events(stand.answers.down(stand.names()[1])) == {
        f"{LINE}-0-1": {("r0", "e-r0", ANN)},
        f"{LINE}-0-2": {("r1", "e-r1", BOB), ("r4", "e-r4", BOB)},
    }


def test_no_text_is_told_in_either_direction(stand: Stand) -> None:
    one, other = stand.names()
    told = [stand.answers.down(one), stand.answers.up("e-r0", None), stand.answers.diff(one, other)]
    assert "e-r0" in repr(told[0])
    assert not [word for word in (SECRET, "Acme", "Bremen") if word in repr(told)]


def states(told: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(run["state"], run["version"]) for response in told["responses"] for run in response["runs"]]


def test_an_event_is_followed_up_to_every_version(stand: Stand) -> None:
    one, other = stand.names()
    assert states(stand.answers.up("e-r0", None)) == [("trained", one), ("trained", other)]
    assert states(stand.answers.up("e-r4", None)) == [("not_read", one), ("trained", other)]


def test_what_measures_and_what_is_held_is_said_with_its_reason(stand: Stand) -> None:
    (measured,) = stand.answers.up("e-r2", None)["responses"]
    assert {run["state"] for run in measured["runs"]} == {"measured"}
    assert "held-out" in measured["now"]
    (held,) = stand.answers.up("e-r3", None)["responses"]
    assert {run["state"] for run in held["runs"]} == {"held"}
    assert held["runs"][0]["reason"].startswith("comment: ") and held["now"].startswith("held: comment: ")


def test_an_event_that_no_batch_has_is_said_to_be_nowhere(stand: Stand) -> None:
    told = stand.answers.up("e-never", None)
    assert told["responses"] == []
    assert "loopwright receipt" in told["detail"]


def test_one_events_id_on_two_responses_is_told_of_both_or_of_the_one_that_is_named(stand: Stand) -> None:
    again = revision("r9", "Who is the head of Acme?", "It is Ida Voss who leads.", BOB)
    same = again.model_copy(update={"signals": (again.signals[0].model_copy(update={"event_id": "e-r0"}),)})
    stand.send(batch([same], 3))
    both = stand.answers.up("e-r0", None)["responses"]
    assert [response["response_id"] for response in both] == ["r0", "r9"]
    assert [r["response_id"] for r in stand.answers.up("e-r0", "r9")["responses"]] == ["r9"]


def test_after_an_erasure_a_version_is_no_longer_called_reproducible(stand: Stand) -> None:
    one, other = stand.names()
    stand.erase()
    for name in (one, other):
        told = stand.answers.down(name)
        assert told["reproducible"] is False
        assert told["why_not_reproducible"] == ["rows that it was trained from were erased (erasure 1)"]
        assert [report["request_id"] for report in told["erasures"]] == ["q1"]
        assert ANN not in repr(told) and "e-r0" not in repr(told)
    assert stand.answers.up("e-r0", None)["responses"] == []


def test_an_event_that_was_taken_back_late_is_told_as_erased_from_what_it_trained(stand: Stand) -> None:
    one, other = stand.names()
    stand.erase(request_id="retract:r0/e-r0", kind="retraction", response_id="r0", event_id="e-r0")
    (told,) = stand.answers.up("e-r0", None)["responses"]
    assert [(run["state"], run["version"]) for run in told["runs"]] == [("erased", one), ("erased", other)]
    assert told["now"].startswith("gone") and "was trained" in told["runs"][0]["reason"]
    assert stand.answers.down(one)["why_not_reproducible"] == [
        "rows that it was trained from were erased (retraction 1)"
    ]


def test_after_the_loss_of_the_disk_the_log_says_which_versions_read_its_batch(stand: Stand) -> None:
    one, other = stand.names()
    with stand.trainer.db as db:
        db.execute("DELETE FROM runs")
    shutil.rmtree(stand.trainer.settings.runs)
    assert states(stand.answers.up("e-r4", None)) == [("not_read", one), ("not_known", other)]
    told = stand.answers.down(one)
    assert (told["run"]["known"], told["reproducible"]) == (False, False)


def test_without_its_snapshot_a_version_says_so_and_names_what_the_log_has(stand: Stand) -> None:
    version = stand.versions()[0]
    shutil.rmtree(stand.trainer.settings.runs / str(version.run_id))
    told = stand.answers.down(version.ref.version)
    assert told["why_not_reproducible"] == ["its snapshot is not on this trainer's disk"]
    assert told["dataset"]["through"] == {"0": 1} and told["dataset"]["kept"] is False
    assert states(stand.answers.up("e-r0", None))[0] == ("not_known", version.ref.version)


def test_a_snapshot_whose_rows_are_others_is_not_called_whole(stand: Stand) -> None:
    version = stand.versions()[0]
    folder = stand.trainer.settings.runs / str(version.run_id)
    rows = snapshot.read_rows(folder)
    altered = [replace(rows[0], row=replace(rows[0].row, answer="Somebody else.")), *rows[1:]]
    write_whole(folder / snapshot.TRAIN_ROWS, snapshot.to_parquet(altered))
    assert stand.answers.down(version.ref.version)["reproducible"] is False


def test_the_base_was_made_from_nobodys_words(stand: Stand) -> None:
    told = stand.answers.down(BASE)
    assert (told["reproducible"], told["kind"]) == (True, "base")
    assert "nothing of users" in told["detail"]


def test_two_versions_differ_in_rows_recipe_software_and_figures(stand: Stand) -> None:
    told = stand.answers.diff(*stand.names())
    rows = told["rows"]
    assert rows["added"] == {"count": 1, "ids": [{"response_id": "r4", "event_id": "e-r4"}]}
    assert rows["changed"] == {"count": 1, "ids": [{"response_id": "r1", "event_id": "e-r1"}]}
    assert (rows["removed"]["count"], rows["same"], rows["complete"]) == (0, 1, True)
    assert told["recipe"] == {"rows": [2, 3]}
    assert told["software"] == {"torch": ["2.2", "2.3"]}
    (figure,) = told["figures"]
    assert [figure[side]["value"] for side in ("one", "other")] == [0.7, 0.8]


def test_a_version_beside_its_base_has_all_rows_added(stand: Stand) -> None:
    rows = stand.answers.diff(BASE, stand.names()[0])["rows"]
    assert (rows["added"]["count"], rows["removed"]["count"]) == (2, 0)


async def test_the_door_answers_both_ways_and_says_what_is_unknown(stand: Stand) -> None:
    one, other = stand.names()
    assert (await stand.ask("/api/lineage", version=one)).json()["counts"]["events"] == 2
    assert (await stand.ask("/api/lineage", event_id="e-r0")).json()["responses"][0]["kind"] == "correction"
    assert (await stand.ask("/api/diff", one=one, other=other)).json()["same_base"] is True
    unknown = await stand.ask("/api/lineage", version=f"{LINE}@v9-00000000")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_version")
    assert one in unknown.json()["detail"]
    assert (await stand.ask("/api/lineage")).status_code == 422


async def test_a_page_of_another_site_learns_nothing(stand: Stand) -> None:
    app = add_lineage_routes(add_service_routes(FastAPI(), Readiness("log")), stand.answers)
    transport = httpx.ASGITransport(app)
    for base, headers in (
        ("http://rebound.example:8004", {}),
        ("http://127.0.0.1:8004", {"Origin": "https://elsewhere.example"}),
    ):
        async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as http:
            assert (await http.get("/api/lineage", params={"event_id": "e-r0"})).status_code == 403
