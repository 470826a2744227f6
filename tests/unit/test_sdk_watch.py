"""`loopwright watch` follows a run: a line for each change, until it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from typer.testing import CliRunner

from loopwright.cli import app, watch
from tests.unit.sdk_server import Service, ok

TRAINING = {
    "run_id": "r1", "stage": "training", "step": 12, "steps": 40, "share": 0.3,
    "loss": 1.204, "tokens_per_s": 169.2, "eta_s": 48.0,
}  # fmt: skip
WAITING = {"run_id": "r1", "stage": "waiting", "reason": "the disk [that] holds it takes no more"}
PUBLISHED = {"run_id": "r1", "stage": "published", "verdict": "passed", "version": "assistant@v1-abcd1234"}


def watched(
    monkeypatch: pytest.MonkeyPatch, *runs: Mapping[str, Any] | None, as_json: bool = False
) -> list[str]:
    """The lines of a watch to which the console says these, one after another."""
    monkeypatch.setattr(watch, "sleep", lambda _: None)
    service = Service([ok({"line": "assistant", "run": run}) for run in runs])
    told = CliRunner().invoke(app, ["watch", *(["--json"] if as_json else [])], obj=service.transport())
    assert told.exit_code == 0, told.output
    return told.stdout.splitlines()


def test_each_change_is_a_line_with_loss_speed_share_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    told = watched(monkeypatch, TRAINING, TRAINING, TRAINING | {"step": 13}, WAITING, PUBLISHED)
    assert told == [
        "training 12/40 30 %, loss 1.204, 169 tokens/s, 48 s left",
        "training 13/40 30 %, loss 1.204, 169 tokens/s, 48 s left",
        "waiting, the disk [that] holds it takes no more",
        "published, passed, assistant@v1-abcd1234",
    ]


def test_for_programs_each_is_a_line_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [json.loads(line) for line in watched(monkeypatch, TRAINING, PUBLISHED, as_json=True)] == [
        TRAINING,
        PUBLISHED,
    ]


def test_where_no_run_was_told_of_it_says_so_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(monkeypatch, None) == ["no run has been told of"]


def test_long_waits_are_told_in_minutes_and_hours() -> None:
    lines = [watch.told_of(TRAINING | {"eta_s": seconds}) for seconds in (600, 9000)]
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["10 min left", "2.5 h left"]
