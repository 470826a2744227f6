"""I1-I6: processor and trainer, killed with -9 three times each in the middle of a loop that closes all the same.
I11: and some of its users are erased from all that the trainer keeps, and from the version's name on.

Everything is real: doors, Kafka, the services under the stack's supervisor, training with a tiny model. What the oracle
catches is shown by `test_processor_controls`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

import pyarrow.parquet as pq
import pytest

from deploy.local.stack import LocalStack
from deploy.local.state_file import erasure_token
from loopwright import Loopwright, Version, new_event_id
from shared.adapters.kafka import KafkaPublisher
from shared.cloudevents import sealed
from shared.events import ChatResponse, Choice, Message
from shared.topics import CHAT_RESPONSES
from tests.fault.loop_oracle import complaints

KILLS = 3
RESPONSES_BETWEEN_KILLS = 40
USERS_AT_ONCE = 8
TRAINED_WITHIN_S = 240.0
LEAVERS = [f"leaver-{number}" for number in range(5)]
SECRET = "the quiet blue lighthouse"


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
    """A correction each; some sent twice, some edited, some taken back, some with a thumb of another user."""
    for place, name in enumerate(names):
        event_id, user = new_event_id(), f"user-{place}"
        for _ in range(2 if place % 3 == 0 else 1):
            loop.correct(name, user, f"It is {name}.", event_id=event_id)
        if place % 4 == 1:
            loop.correct(name, user, f"It really is {name}.")
        if place % 5 == 2:
            loop.retract(name, user, event_id)
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
    """The processor is at work: outcomes come."""
    deadline = time.monotonic() + seconds
    tick = Event()
    while loop.status().ledger == before and time.monotonic() < deadline:
        tick.wait(0.05)


def settled(loop: Loopwright, seconds: float) -> bool:
    """Whether nothing is pending any more."""
    deadline = time.monotonic() + seconds
    tick = Event()
    while time.monotonic() < deadline:
        if loop.status().pending == 0:
            return True
        tick.wait(0.25)
    return False


def until_published(stack: LocalStack, loop: Loopwright) -> list[Version]:
    """Kills the trainer three times, each time in another stage of its run; then lets it come to its end."""
    seen: list[str] = []
    deadline, tick = time.monotonic() + TRAINED_WITHIN_S, Event()
    while time.monotonic() < deadline:
        trained = [version for version in loop.versions() if version.number]
        if trained:
            assert len(seen) == KILLS, f"the run was over after {seen}: too short to be killed {KILLS} times"
            return trained
        progress = (loop.status().model_extra or {}).get("run") or {}
        here = f"{progress.get('stage')}/{progress.get('step')}"
        if len(seen) < KILLS and progress.get("stage") and here not in seen:
            seen.append(here)
            os.kill(stack.pid_of("trainer"), signal.SIGKILL)
            stack.wait_ready(60, ["trainer"])
        tick.wait(0.1)
    raise AssertionError(f"no version after {TRAINED_WITHIN_S} s; killed in {seen}")


def confide(stack: LocalStack, loop: Loopwright) -> None:
    """Some users say what they will want erased."""
    names = [f"secret-{number}" for number in range(len(LEAVERS))]
    publish_responses(stack.urls["kafka"], names)
    for name, user in zip(names, LEAVERS, strict=True):
        loop.correct(name, user, f"It is {SECRET} of {user}.")


def erased(loop: Loopwright) -> set[str]:
    """All of them, asked for at once; the versions that were trained from any of them."""
    asked = [loop.erase(user).request_id for user in LEAVERS]
    found = [loop.wait_for_erasure(request_id, timeout=60) for request_id in asked]
    assert all(erasure.status == "done" and erasure.signals for erasure in found), found
    return {version for erasure in found for version in erasure.versions}


def holding(folder: Path, secret: str) -> list[str]:
    """The files that have it, Parquet read as what it says."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = (
            str(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else path.read_bytes()
        )
        if secret.encode() in content:
            found.append(str(path.relative_to(folder)))
    return found


def a_stack(root: Path, tiny: Path, services: Sequence[str]) -> LocalStack:
    return LocalStack(
        root,
        services=services,
        base_model=tiny,
        prepared=tiny.parent.parent,
        env={
            "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "1",
            "LOOPWRIGHT_PARTITIONS": "3",
            "LOOPWRIGHT_TRAINER_EXAMPLES": "1000",
            "LOOPWRIGHT_TRAINER_REPLAY_PROMPTS": "16",
            "LOOPWRIGHT_TRAINER_CHECKPOINT_STEPS": "2",
            "LOOPWRIGHT_TRAINER_GATE_NEW_TOKENS": "8",
            "LOOPWRIGHT_TRAINER_GATE_EVAL_PROMPTS": "8",
        },
    )


def doors(stack: LocalStack) -> Loopwright:
    return Loopwright(
        feedback_url=stack.urls["feedback"],
        console_url=stack.urls["console"],
        erasure_token=erasure_token(stack.root),
    )


@pytest.mark.timeout(400)
def test_a_loop_killed_six_times_closes_with_one_version(tmp_path: Path, tiny_model: Path) -> None:
    services = ("feedback", "processor", "trainer", "rollout", "console")
    with a_stack(tmp_path, tiny_model, services) as stack, doors(stack) as loop:
        confide(stack, loop)
        under_load(stack, loop)
        assert settled(loop, 30)
        ordered = loop.wait_for_result(loop.command("train_now").command_id, timeout=30)
        assert ordered.status == "done", ordered.message
        trained = until_published(stack, loop)
        assert complaints(stack.urls["kafka"]) == []
        kept = tmp_path / "data" / "trainer"
        assert holding(kept, SECRET)
        # A fifth of all users are held out, and train nothing: not all of five.
        assert erased(loop) == {trained[0].version}
        assert holding(kept, SECRET) == []
    assert [version.number for version in trained] == [1]
