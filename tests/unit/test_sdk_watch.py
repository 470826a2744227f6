"""`loopwright watch`: one line per change of a run, until it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from typer.testing import CliRunner

from loopwright.cli import app, watch
from tests.unit.sdk_server import FakeService, json_response

TRAINING = {
    "run_id": "r1", "stage": "training", "step": 12, "steps": 40, "share": 0.3,
    "loss": 1.204, "tokens_per_s": 169.2, "eta_s": 48.0,
}  # fmt: skip
WAITING = {"run_id": "r1", "stage": "waiting", "reason": "the disk [data] is full"}
PUBLISHED = {"run_id": "r1", "stage": "published", "verdict": "passed", "version": "assistant@v1-abcd1234"}


def watch_output(
    monkeypatch: pytest.MonkeyPatch, *runs: Mapping[str, Any] | None, as_json: bool = False
) -> list[str]:
    """Return the printed lines while the console reports these runs, one after the other."""
    monkeypatch.setattr(watch, "sleep", lambda _: None)
    service = FakeService([json_response({"line": "assistant", "run": run}) for run in runs])
    result = CliRunner().invoke(app, ["watch", *(["--json"] if as_json else [])], obj=service.transport())
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_each_change_is_one_line_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = watch_output(monkeypatch, TRAINING, TRAINING, TRAINING | {"step": 13}, WAITING, PUBLISHED)
    assert lines == [
        "training 12/40 30 %, loss 1.204, 169 tokens/s, 48 s left",
        "training 13/40 30 %, loss 1.204, 169 tokens/s, 48 s left",
        "waiting, the disk [data] is full",
        "published, passed, assistant@v1-abcd1234",
    ]


def test_each_change_is_one_line_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [json.loads(line) for line in watch_output(monkeypatch, TRAINING, PUBLISHED, as_json=True)] == [
        TRAINING,
        PUBLISHED,
    ]


def test_watch_ends_if_there_is_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch_output(monkeypatch, None) == ["no training run yet"]


def test_long_durations_are_in_minutes_and_hours() -> None:
    lines = [watch.format_progress(TRAINING | {"eta_s": seconds}) for seconds in (600, 9000)]
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["10 min left", "2.5 h left"]
