"""The trainer's live status in Redis: what is written is read, and anything unreadable is absent."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.live_status import (
    CollectedStatus,
    LiveStatus,
    QuarantinedEvent,
    QuarantineStatus,
    RunProgress,
)
from shared.run_stage import ENDED_STAGES, RunStage, run_stage

AT = "2026-03-04T12:00:00Z"
RUN = {
    "run_id": "r-1",
    "stage": "training",
    "step": 40,
    "steps": 160,
    "share": 0.25,
    "loss": 1.25,
    "tokens_per_s": 611.4,
    "eta_s": 130.0,
    "updated_at": AT,
}
COLLECTED = {
    "usable": 118,
    "needed": 200,
    "users": 31,
    "users_needed": 20,
    "examples": 240,
    "held": {"comment: held": 22},
    "batches": 18,
    "reason": "118 of 200 usable examples",
    "updated_at": AT,
}
QUARANTINE = {"held": [["r1", "e1", "personal data: a phone number"]], "total": 1, "updated_at": AT}


@pytest.mark.parametrize(
    ("record", "payload"),
    [(RunProgress, RUN), (CollectedStatus, COLLECTED), (QuarantineStatus, QUARANTINE)],
)
def test_record_survives_a_round_trip(record: type[LiveStatus], payload: dict[str, Any]) -> None:
    parsed = record.from_json(json.dumps(payload | {"field_of_a_newer_trainer": 1}).encode())
    assert parsed is not None
    assert json.loads(parsed.to_json()) == payload


def test_quarantined_events_are_arrays_of_ids_and_reason() -> None:
    status = QuarantineStatus(
        held=(QuarantinedEvent("r1", "e1", "why"),), total=1, updated_at=datetime(2026, 3, 4, tzinfo=UTC)
    )
    assert json.loads(status.to_json())["held"] == [["r1", "e1", "why"]]


@pytest.mark.parametrize(
    ("record", "value"),
    [
        (RunProgress, None),
        (RunProgress, b"{"),
        (RunProgress, b"[1]"),
        (RunProgress, b"\xff"),
        (RunProgress, b"{}"),
        (RunProgress, json.dumps(RUN | {"stage": 7}).encode()),
        (RunProgress, json.dumps(RUN | {"step": "x"}).encode()),
        (RunProgress, json.dumps(RUN | {"loss": float("nan")}).encode()),
        (RunProgress, json.dumps(RUN | {"eta_s": float("inf")}).encode()),
        (RunProgress, json.dumps(RUN | {"updated_at": "soon"}).encode()),
        (CollectedStatus, json.dumps(COLLECTED | {"held": 3}).encode()),
        (CollectedStatus, json.dumps(COLLECTED | {"held": {"a": None}}).encode()),
        (CollectedStatus, b'{"usable": 1, "needed": 2}'),
        (QuarantineStatus, json.dumps(QUARANTINE | {"held": [["r1"]]}).encode()),
    ],
)
def test_unreadable_value_is_absent(record: type[LiveStatus], value: bytes | None) -> None:
    assert record.from_json(value) is None


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        *[(stage.value, stage) for stage in RunStage],
        ("gate, candidate: answers", RunStage.GATE),
        ("gate: likelihood of pairs", RunStage.GATE),
        ("gateway", None),
        ("", None),
    ],
)
def test_stage_is_recognised_with_or_without_a_task(text: str, stage: RunStage | None) -> None:
    assert run_stage(text) is stage


def test_ended_stages_are_the_last_ones() -> None:
    assert {RunStage.PUBLISHED, RunStage.FAILED, RunStage.ERASED} == ENDED_STAGES
