"""The gate report over HTTP and with `loopwright gate`."""

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
from tests.trainer_factories import LINE, NOW, TrainerRig, batch, finish_run, revision, run_steps
from tests.unit.sdk_server import FakeService, json_response, problem_response

SECRET = "Zanzibarquux"
FIGURE = Figure(name="win_rate", n=40, value=0.9, low=0.7, high=0.95, bound=0.5, passed=True)
REPORT = GateReport(
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
    """A published version whose run has a gate report."""
    rig = TrainerRig(tmp_path, finish_run)
    trainer = rig.trainer()
    training_batch = batch(
        [revision(f"r{i}", f"Who founded shop {i}?", f"Ida {i} did.", f"u{i}") for i in range(8)]
    )
    rig.log.append(
        cloudevent(
            TRAINING_BATCHES,
            training_batch.batch_id,
            training_batch,
            source="processor",
            ce_id="x",
            at=NOW,
            partition=0,
        )
    )
    run_steps(trainer)
    with closing(open_database(trainer.settings.folder)) as db:
        run = run_table.all_runs(db)[-1]
    folder = trainer.settings.runs / run.config.run_id
    write_whole(folder / GATE_RESULT, REPORT.model_dump_json().encode())
    report = {"line": LINE, "run_id": run.config.run_id, "report": REPORT.model_dump(mode="json"), "items": [ITEM],
             "pairs": [], "general": [], "safety": [], "golden": []}  # fmt: skip
    write_whole(folder / GATE_REPORT, json.dumps(report).encode())
    assert run.version is not None
    return run.version


def settings(folder: Path, **options: Any) -> TrainerSettings:
    return TrainerSettings(line=LINE, data_dir=folder / "data", **options)


def get(
    trainer_settings: TrainerSettings, path: str, version: str, host: str = "localhost"
) -> httpx.Response:
    """The response of a trainer with these settings."""
    app = add_gate_routes(add_service_routes(FastAPI(), Readiness()), trainer_settings)

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.get(path, params={"version": version})

    return asyncio.run(request())


def test_report_is_returned_as_json_and_as_a_page_that_loads_nothing(tmp_path: Path, version: str) -> None:
    report = get(settings(tmp_path), "/api/gate", version).json()
    assert (report["version"], report["report"]["more_items"]) == (version, 12)
    assert report["items"] == [ITEM]
    page = get(settings(tmp_path), "/gate", version)
    assert SECRET in page.text
    assert version in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_api_on_all_interfaces_returns_text_only_if_allowed(tmp_path: Path, version: str) -> None:
    public = settings(tmp_path, host="0.0.0.0")
    for path in ("/api/gate", "/gate"):
        response = get(public, path, version)
        assert response.status_code == 200
        assert SECRET not in response.text
        assert "LOOPWRIGHT_TRAINER_REPORT_TEXTS" in response.text
    allowed = settings(tmp_path, host="0.0.0.0", report_texts=True)
    assert SECRET in get(allowed, "/gate", version).text


def test_after_an_erasure_figures_remain_and_the_reason_is_given(tmp_path: Path, version: str) -> None:
    local = settings(tmp_path)
    next(local.runs.glob(f"*/{GATE_REPORT}")).unlink()
    report = get(local, "/api/gate", version).json()
    assert report["report"]["figures"][0]["name"] == "win_rate"
    assert "items" not in report
    assert "erasure" in report["without"]
    assert "erasure" in get(local, "/gate", version).text


def test_unknown_version_is_not_found(tmp_path: Path, version: str) -> None:
    local = settings(tmp_path)
    unknown = get(local, "/gate", f"{LINE}@v9-00000000")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_version")


# --- the command line ---------------------------------------------------------------------------------------------

RESPONSE: dict[str, Any] = {
    "version": f"{LINE}@v1-0a1b2c3d",
    "run_id": "r",
    "report": REPORT.model_dump(mode="json"),
    "items": [ITEM],
}


def test_command_prints_verdict_and_figures_and_writes_the_page(tmp_path: Path) -> None:
    service = FakeService([json_response(RESPONSE), httpx.Response(200, text="<p>page</p>")])
    target = tmp_path / "gate.html"
    result = CliRunner().invoke(
        cli, ["gate", RESPONSE["version"], "--html", str(target)], obj=service.transport()
    )
    assert result.exit_code == 0
    output = " ".join(result.stdout.split())
    for part in ("inconclusive against", "not shown yet", "win rate 0.900 0.700 to 0.950 0.500 40 holds"):
        assert part in output
    assert target.read_text() == "<p>page</p>"
    assert [request.url.path for request in service.requests] == ["/api/gate", "/gate"]


def test_command_prints_the_whole_report_as_json() -> None:
    result = CliRunner().invoke(
        cli, ["gate", RESPONSE["version"], "--json"], obj=FakeService([json_response(RESPONSE)]).transport()
    )
    assert json.loads(result.stdout)["items"] == [ITEM]


def test_command_exits_with_1_for_a_version_without_a_gate() -> None:
    answers = [problem_response(404, "unknown_version", "the base has no gate")]
    result = CliRunner().invoke(
        cli, ["gate", "assistant@base-0a1b2c3d"], obj=FakeService(answers).transport()
    )
    assert (result.exit_code, "the base has no gate" in result.stderr) == (1, True)
