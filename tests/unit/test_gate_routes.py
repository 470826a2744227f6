"""The gate's report where operators ask for it: the trainer's door, and `loopwright gate`."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from loopwright.cli import app as cli
from services.trainer.api.gate_routes import add_gate_routes
from services.trainer.database import open_database
from services.trainer.files import write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import GATE_REPORT, GATE_RESULT
from services.trainer.settings import TrainerSettings
from shared.adapters.http import add_service_routes
from shared.cloudevents import cloudevent
from shared.telemetry import Readiness
from shared.topics import TRAINING_BATCHES
from shared.versions import Figure, GateReport
from tests.trainer_factories import LINE, NOW, Rig, batch, finish, revision, turns
from tests.unit.sdk_server import Service, ok, refused

SECRET = "Zanzibarquux"
FIGURE = Figure(name="win_rate", n=40, value=0.9, low=0.7, high=0.95, bound=0.5, passed=True)
REPORTED = GateReport(
    verdict="inconclusive",
    reasons=("not shown yet",),
    figures=(FIGURE,),
    gated_against=f"{LINE}@base-{'ab' * 4}",
    more_items=12,
)
ITEM = {
    "identity": "r/e", "counts": "wins", "question": f"What is {SECRET}?", "correction": "A place.", "keys": [],
    "candidate": "A place.", "stable": "No idea.", "candidate_score": 1.0, "stable_score": 0.0, "outcome": 1,
}  # fmt: skip


@pytest.fixture
def version(tmp_path: Path) -> str:
    """A version that a trainer published, whose run kept a report."""
    rig = Rig(tmp_path, finish)
    trainer = rig.trainer()
    kept = batch([revision(f"r{i}", f"Who founded shop {i}?", f"Ida {i} did.", f"u{i}") for i in range(8)])
    record = cloudevent(TRAINING_BATCHES, kept.batch_id, kept, source="processor", ce_id="x", at=NOW, partition=0)
    rig.log.append(record)
    turns(trainer)
    with closing(open_database(trainer.settings.folder)) as db:
        run = run_table.all_runs(db)[-1]
    folder = trainer.settings.runs / run.config.run_id
    write_whole(folder / GATE_RESULT, REPORTED.model_dump_json().encode())
    whole = {"line": LINE, "run_id": run.config.run_id, "report": REPORTED.model_dump(mode="json"), "items": [ITEM],
             "pairs": [], "general": [], "safety": [], "golden": []}  # fmt: skip
    write_whole(folder / GATE_REPORT, json.dumps(whole).encode())
    assert run.version is not None
    return run.version


def settings(folder: Path, **more: Any) -> TrainerSettings:
    return TrainerSettings(line=LINE, data_dir=folder / "data", **more)


def asked(told: TrainerSettings, path: str, version: str, host: str = "localhost") -> httpx.Response:
    app = add_gate_routes(add_service_routes(FastAPI(), Readiness()), told)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.get(path, params={"version": version})

    return asyncio.run(ask())


def test_the_report_is_told_as_json_and_as_a_page_that_may_load_nothing(tmp_path: Path, version: str) -> None:
    told = asked(settings(tmp_path), "/api/gate", version).json()
    assert (told["version"], told["report"]["more_items"]) == (version, 12)
    assert told["items"] == [ITEM]
    shown = asked(settings(tmp_path), "/gate", version)
    assert SECRET in shown.text
    assert version in shown.text
    assert shown.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_door_that_other_machines_reach_tells_no_text_unless_it_was_told_to(
    tmp_path: Path, version: str
) -> None:
    open_door = settings(tmp_path, host="0.0.0.0")
    for path in ("/api/gate", "/gate"):
        found = asked(open_door, path, version)
        assert found.status_code == 200
        assert SECRET not in found.text
        assert "LOOPWRIGHT_TRAINER_REPORT_TEXTS" in found.text
    meant = settings(tmp_path, host="0.0.0.0", report_texts=True)
    assert SECRET in asked(meant, "/gate", version).text


def test_after_an_erasure_the_figures_are_left_and_the_page_says_so(tmp_path: Path, version: str) -> None:
    told = settings(tmp_path)
    next(told.runs.glob(f"*/{GATE_REPORT}")).unlink()
    found = asked(told, "/api/gate", version).json()
    assert found["report"]["figures"][0]["name"] == "win_rate"
    assert "items" not in found
    assert "erasure" in found["without"]
    assert "erasure" in asked(told, "/gate", version).text


def test_foreign_names_and_unknown_versions_are_refused(tmp_path: Path, version: str) -> None:
    told = settings(tmp_path)
    assert asked(told, "/gate", version, host="evil.example").status_code in (403, 422)
    unknown = asked(told, "/gate", f"{LINE}@v9-00000000")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_version")


# --- the command line ---------------------------------------------------------------------------------------------

TOLD: dict[str, Any] = {
    "version": f"{LINE}@v1-0a1b2c3d",
    "run_id": "r",
    "report": REPORTED.model_dump(mode="json"),
    "items": [ITEM],
}


def test_the_command_shows_verdict_reasons_and_figures_and_writes_the_page(tmp_path: Path) -> None:
    service = Service([ok(TOLD), httpx.Response(200, text="<p>page</p>")])
    target = tmp_path / "gate.html"
    result = CliRunner().invoke(
        cli, ["gate", TOLD["version"], "--html", str(target)], obj=service.transport()
    )
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    for part in ("inconclusive against", "not shown yet", "win rate 0.900 0.700 to 0.950 0.500 40 holds"):
        assert part in shown
    assert target.read_text() == "<p>page</p>"
    assert [request.url.path for request in service.asked] == ["/api/gate", "/gate"]


def test_for_programs_the_whole_report_is_told() -> None:
    result = CliRunner().invoke(cli, ["gate", TOLD["version"], "--json"], obj=Service([ok(TOLD)]).transport())
    assert json.loads(result.stdout)["items"] == [ITEM]


def test_a_version_without_a_gate_ends_the_command_with_status_1() -> None:
    answers = [refused(404, "unknown_version", "the base has no gate")]
    result = CliRunner().invoke(cli, ["gate", "assistant@base-0a1b2c3d"], obj=Service(answers).transport())
    assert (result.exit_code, "the base has no gate" in result.stderr) == (1, True)
