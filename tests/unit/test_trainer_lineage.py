"""Lineage: from a version down to events, from an event up to versions, and the difference of two versions.

It stays true after erasures and after the loss of a disk, and contains no text."""

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
from services.trainer.dataset import batch_table, snapshot, snapshot_files
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
from tests.trainer_factories import LINE, NOW, TrainerRig, batch, revision, run_steps

BASE = f"{LINE}@base-{'ab' * 4}"
NAMES = [f"user-{i}" for i in range(40)]
ANN, BOB = [user for user in NAMES if not is_held_out(LINE, user)][:2]
HELDOUT_USER = next(user for user in NAMES if is_held_out(LINE, user))
SECRET = "Zanzibarquux"


def finish(folder: Path) -> int:
    """Do what a run's process does, with the database on disk. Each run's gate has other figures."""
    config = RunConfig.from_json((folder / "config.json").read_text())
    with closing(sqlite3.connect(folder.parent.parent / "trainer.sqlite3")) as db:
        taken = snapshot.build(LINE, batch_table.current_examples(db, config.through), config.through)
    snapshot_files.write(folder, taken, 10)
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / ARTIFACT).mkdir(exist_ok=True)
    environments = [{"software": {"torch": f"2.{len(taken.train)}"}, "machine": {"threads": 1}}]
    facts = {"recipe": {"rank": 16, "rows": len(taken.train)}, "environments": environments}
    write_whole(folder / ARTIFACT / "loopwright.json", json.dumps(facts | {"run": folder.name}).encode())
    wins = Figure(name="win_rate", n=30, value=0.5 + len(taken.train) / 10, low=0.4, high=0.9)
    report = GateReport(verdict="passed", figures=(wins,), gated_against=BASE)
    write_whole(folder / GATE_RESULT, report.model_dump_json().encode())
    return 0


class TrainedLine:
    """A trainer that has trained two versions. The second has one row more, and one that changed."""

    def __init__(self, folder: Path) -> None:
        self.rig = TrainerRig(folder, finish)
        self.trainer: Trainer = self.rig.trainer(examples=1)
        self.trainer.versions.announce_base(self.trainer.base, 0)
        self.send(
            batch(
                [
                    revision("r0", "Who founded Acme?", f"It was {SECRET} who did.", ANN),
                    revision("r1", "Where is the head office?", "In the harbour of Kiel.", BOB),
                    revision("r2", "How long is the warranty?", "Six years from today.", HELDOUT_USER),
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
        self.queries = LineageQueries(
            self.trainer.settings, lambda topic: InMemoryLogReader(self.rig.log, [topic]), self.trainer.store
        )

    def send(self, *batches: Batch) -> None:
        for one in batches:
            self.rig.log.append(
                cloudevent(
                    TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0
                )
            )
        run_steps(self.trainer)

    def erase(self, **more: str) -> None:
        """Send what the processor publishes for the erasure of Ann or, with `more` fields, for a late retraction."""
        kept = [revision("r1", "Where is the head office?", "In the harbour of Kiel.", BOB)]
        self.send(batch(kept, 1, rewrite=1))
        self.report_erasure(**more)

    def report_erasure(self, **more: object) -> None:
        """Send the processor's report of an erasure, after the rewritten batches."""
        fields = {
            "request_id": "q1",
            "subject": ANN,
            "batches": {f"{LINE}-0-1": 1},
            "completed_at": NOW,
        } | more
        report = ErasureReport.model_validate(
            {"line": LINE, "service": "processor", "partition": 0, "partitions": 1} | fields
        )
        self.rig.log.append(
            cloudevent(
                ERASURE_REPORTS, report.request_id, report, source="processor", ce_id="0", at=NOW, partition=0
            )
        )
        run_steps(self.trainer)

    def versions(self) -> list[ModelVersion]:
        return [version for version in self.trainer.versions.versions() if version.number is not None]

    def names(self) -> tuple[str, str]:
        one, other = (version.ref.version for version in self.versions())
        return one, other

    async def get(self, path: str, **params: str) -> httpx.Response:
        app = add_lineage_routes(add_service_routes(FastAPI(), Readiness("log")), self.queries)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8004") as http:
            return await http.get(path, params=params)


@pytest.fixture
def line(tmp_path: Path) -> TrainedLine:
    return TrainedLine(tmp_path)


def events(result: dict[str, Any]) -> dict[str, set[tuple[str, str, str]]]:
    """Return (response, event, user) of each batch."""
    return {
        one["batch_id"]: {
            (response["response_id"], event["event_id"], event["user"])
            for response in one["responses"]
            for event in response["events"]
        }
        for one in result["batches"]
    }


def test_version_leads_down_to_the_events_that_trained_it(line: TrainedLine) -> None:
    result = line.queries.version(line.names()[0])
    assert events(result) == {f"{LINE}-0-1": {("r0", "e-r0", ANN), ("r1", "e-r1", BOB)}}
    assert result["counts"] == {"responses": 2, "events": 2, "users": 2, "kinds": {"correction": 2}}
    assert (result["reproducible"], result["run"]["stage"], result["verdict"]) == (
        True,
        "published",
        "passed",
    )
    assert result["dataset"]["digest"] == line.versions()[0].dataset.digest  # type: ignore[union-attr]


def test_changed_row_is_listed_under_the_batch_of_its_newest_revision(line: TrainedLine) -> None:
    assert events(line.queries.version(line.names()[1])) == {
        f"{LINE}-0-1": {("r0", "e-r0", ANN)},
        f"{LINE}-0-2": {("r1", "e-r1", BOB), ("r4", "e-r4", BOB)},
    }


def test_lineage_contains_no_text(line: TrainedLine) -> None:
    one, other = line.names()
    result = [line.queries.version(one), line.queries.event("e-r0", None), line.queries.diff(one, other)]
    assert "e-r0" in repr(result[0])
    assert not [word for word in (SECRET, "Acme", "Bremen") if word in repr(result)]


def states(result: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Return (state, version) of each run."""
    return [(run["state"], run["version"]) for response in result["responses"] for run in response["runs"]]


def test_event_leads_up_to_every_version(line: TrainedLine) -> None:
    one, other = line.names()
    assert states(line.queries.event("e-r0", None)) == [("trained", one), ("trained", other)]
    assert states(line.queries.event("e-r4", None)) == [("not_read", one), ("trained", other)]


def test_heldout_and_quarantined_events_have_their_reason(line: TrainedLine) -> None:
    (measured,) = line.queries.event("e-r2", None)["responses"]
    assert {run["state"] for run in measured["runs"]} == {"measured"}
    assert "held-out" in measured["now"]
    (held,) = line.queries.event("e-r3", None)["responses"]
    assert {run["state"] for run in held["runs"]} == {"held"}
    assert held["runs"][0]["reason"].startswith("comment: ") and held["now"].startswith("held: comment: ")


def test_event_in_no_batch_is_not_found(line: TrainedLine) -> None:
    result = line.queries.event("e-never", None)
    assert result["responses"] == []
    assert "loopwright receipt" in result["detail"]


def test_event_id_on_two_responses_returns_both_unless_one_is_named(line: TrainedLine) -> None:
    again = revision("r9", "Who is the head of Acme?", "It is Ida Voss who leads.", BOB)
    same = again.model_copy(update={"signals": (again.signals[0].model_copy(update={"event_id": "e-r0"}),)})
    line.send(batch([same], 3))
    both = line.queries.event("e-r0", None)["responses"]
    assert [response["response_id"] for response in both] == ["r0", "r9"]
    assert [r["response_id"] for r in line.queries.event("e-r0", "r9")["responses"]] == ["r9"]


def test_version_is_not_reproducible_after_an_erasure(line: TrainedLine) -> None:
    one, other = line.names()
    line.erase()
    for name in (one, other):
        result = line.queries.version(name)
        assert result["reproducible"] is False
        assert result["why_not_reproducible"] == ["rows that it was trained on were erased (erasure 1)"]
        assert [report["request_id"] for report in result["erasures"]] == ["q1"]
        assert ANN not in repr(result) and "e-r0" not in repr(result)
    assert line.queries.event("e-r0", None)["responses"] == []


def test_late_retraction_shows_the_event_as_erased_from_its_versions(line: TrainedLine) -> None:
    one, other = line.names()
    line.erase(request_id="retract:r0/e-r0", kind="retraction", response_id="r0", event_id="e-r0")
    (result,) = line.queries.event("e-r0", None)["responses"]
    assert [(run["state"], run["version"]) for run in result["runs"]] == [("erased", one), ("erased", other)]
    assert result["now"].startswith("gone") and "was trained" in result["runs"][0]["reason"]
    assert line.queries.version(one)["why_not_reproducible"] == [
        "rows that it was trained on were erased (retraction 1)"
    ]


def test_log_says_which_versions_read_a_batch_after_disk_loss(line: TrainedLine) -> None:
    one, other = line.names()
    with line.trainer.db as db:
        db.execute("DELETE FROM runs")
    shutil.rmtree(line.trainer.settings.runs)
    assert states(line.queries.event("e-r4", None)) == [("not_read", one), ("not_known", other)]
    result = line.queries.version(one)
    assert (result["run"]["known"], result["reproducible"]) == (False, False)


def test_version_without_its_snapshot_falls_back_to_the_log(line: TrainedLine) -> None:
    version = line.versions()[0]
    shutil.rmtree(line.trainer.settings.runs / str(version.run_id))
    result = line.queries.version(version.ref.version)
    assert result["why_not_reproducible"] == ["its snapshot is not on this trainer's disk"]
    assert result["dataset"]["through"] == {"0": 1} and result["dataset"]["kept"] is False
    assert states(line.queries.event("e-r0", None))[0] == ("not_known", version.ref.version)


def test_version_with_an_altered_snapshot_is_not_reproducible(line: TrainedLine) -> None:
    version = line.versions()[0]
    folder = line.trainer.settings.runs / str(version.run_id)
    rows = snapshot_files.read_rows(folder)
    altered = [replace(rows[0], row=replace(rows[0].row, answer="Another founder.")), *rows[1:]]
    write_whole(folder / snapshot_files.TRAIN_ROWS, snapshot_files.to_parquet(altered))
    assert line.queries.version(version.ref.version)["reproducible"] is False


def test_base_contains_no_users_data(line: TrainedLine) -> None:
    result = line.queries.version(BASE)
    assert (result["reproducible"], result["kind"]) == (True, "base")
    assert "no user's data" in result["detail"]


def test_diff_shows_rows_recipe_software_and_figures(line: TrainedLine) -> None:
    result = line.queries.diff(*line.names())
    rows = result["rows"]
    assert rows["added"] == {"count": 1, "ids": [{"response_id": "r4", "event_id": "e-r4"}]}
    assert rows["changed"] == {"count": 1, "ids": [{"response_id": "r1", "event_id": "e-r1"}]}
    assert (rows["removed"]["count"], rows["same"], rows["complete"]) == (0, 1, True)
    assert result["recipe"] == {"rows": [2, 3]}
    assert result["software"] == {"torch": ["2.2", "2.3"]}
    (figure,) = result["figures"]
    assert [figure[side]["value"] for side in ("one", "other")] == [0.7, 0.8]


def test_diff_with_the_base_shows_all_rows_as_added(line: TrainedLine) -> None:
    rows = line.queries.diff(BASE, line.names()[0])["rows"]
    assert (rows["added"]["count"], rows["removed"]["count"]) == (2, 0)


async def test_http_api_answers_both_ways_and_names_unknown_versions(line: TrainedLine) -> None:
    one, other = line.names()
    assert (await line.get("/api/lineage", version=one)).json()["counts"]["events"] == 2
    assert (await line.get("/api/lineage", event_id="e-r0")).json()["responses"][0]["kind"] == "correction"
    assert (await line.get("/api/diff", one=one, other=other)).json()["same_base"] is True
    unknown = await line.get("/api/lineage", version=f"{LINE}@v9-00000000")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_version")
    assert one in unknown.json()["detail"]
    assert (await line.get("/api/lineage")).status_code == 422
