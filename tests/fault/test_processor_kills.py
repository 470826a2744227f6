"""I1-I4: the real processor, killed with -9 three times under load, loses nothing and counts nothing twice.

The whole path is real: doors, Kafka, the processor under the stack's supervisor. The same oracle catches a processor
that commits its positions before its transaction.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

import pytest

from deploy.local.stack import LocalStack
from loopwright import Loopwright, new_event_id
from shared.adapters.kafka import KafkaPublisher
from shared.envelope import sealed
from shared.events import ChatResponse, Choice, Message
from shared.topics import CHAT_RESPONSES
from tests.fault.loop_oracle import complaints

KILLS = 3
RESPONSES_BETWEEN_KILLS = 40
USERS_AT_ONCE = 8


def publish_responses(kafka: str, names: Sequence[str]) -> None:
    """As an app with its own model would."""
    publisher = KafkaPublisher(kafka, "sdk")
    now = datetime.now(UTC)
    for name in names:
        response = ChatResponse(
            line="assistant",
            response_id=name,
            version="own-model-1",
            messages=(Message(role="user", content=f"What is {name}?"),),
            choices=(Choice(index=0, text="I do not know."),),
            created_at=now,
        )
        publisher.publish(sealed(CHAT_RESPONSES, name, response, source="sdk", ce_id=name, at=now))
    assert publisher.flush(20) == 0
    publisher.close()


def react_to(loop: Loopwright, names: Sequence[str]) -> None:
    """A correction each; some sent twice, some edited, some taken back, some from a second user."""
    for place, name in enumerate(names):
        event_id = new_event_id()
        for _ in range(2 if place % 3 == 0 else 1):
            loop.correct(name, "ann", f"It is {name}.", event_id=event_id)
        if place % 4 == 1:
            loop.correct(name, "ann", f"It really is {name}.")
        if place % 5 == 2:
            loop.retract(name, "ann", event_id)
        if place % 2 == 0:
            loop.thumbs_down(name, "bob")


def under_load(stack: LocalStack, loop: Loopwright) -> None:
    """Kills the processor in the middle of a load, each time as soon as it reads again."""
    for kill in range(KILLS):
        names = [f"k{kill}-{number}" for number in range(RESPONSES_BETWEEN_KILLS)]
        publish_responses(stack.urls["kafka"], names)
        load = [Thread(target=react_to, args=(loop, names[n::USERS_AT_ONCE])) for n in range(USERS_AT_ONCE)]
        for user in load:
            user.start()
        stack.wait_ready(60, ["processor"])
        before = loop.status().ledger
        until_moves(loop, before)
        os.kill(stack.pid_of("processor"), signal.SIGKILL)
        for user in load:
            user.join()
    stack.wait_ready(60, ["processor"])


def until_moves(loop: Loopwright, before: dict[str, int], seconds: float = 20.0) -> None:
    """The processor is at work: outcomes come. A broken one may have lost what would have brought them."""
    deadline = time.monotonic() + seconds
    tick = Event()
    while loop.status().ledger == before and time.monotonic() < deadline:
        tick.wait(0.05)


def settled(loop: Loopwright, seconds: float) -> bool:
    """Whether nothing is pending any more; a processor that lost events never gets there."""
    deadline = time.monotonic() + seconds
    tick = Event()
    while time.monotonic() < deadline:
        if loop.status().pending == 0:
            return True
        tick.wait(0.25)
    return False


def run(root: Path, prepared: Path, tiny: Path, processor: str) -> tuple[bool, list[str]]:
    """(nothing is pending in the end, what the oracle complains of)"""
    stack = LocalStack(
        root,
        services=("feedback", "processor", "console"),
        base_model=tiny,
        prepared=prepared,
        env={"LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "1", "LOOPWRIGHT_PARTITIONS": "3"},
        commands={"processor": [sys.executable, "-m", processor]},
    )
    with stack, Loopwright(feedback_url=stack.urls["feedback"], console_url=stack.urls["console"]) as loop:
        under_load(stack, loop)
        closed = settled(loop, 30 if processor.startswith("services") else 6)
        return closed, complaints(stack.urls["kafka"])


@pytest.mark.timeout(180)
def test_a_processor_killed_three_times_closes_the_ledger(tmp_path: Path, tiny_model: Path) -> None:
    closed, found = run(tmp_path, tiny_model.parent.parent, tiny_model, "services.processor")
    assert found == []
    assert closed


@pytest.mark.timeout(180)
def test_the_oracle_catches_a_processor_that_commits_positions_first(
    tmp_path: Path, tiny_model: Path
) -> None:
    closed, found = run(tmp_path, tiny_model.parent.parent, tiny_model, "tests.fault.broken_processor")
    assert not closed
    assert any(complaint.startswith("I1") for complaint in found)
