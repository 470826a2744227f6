"""I1-I6 when processor and trainer are killed three times each: the loop still closes with one version.

I11: afterwards some users are erased from everything that the trainer keeps. Everything is real: the HTTP APIs, Kafka,
the services under the stack's supervisor, and training with a tiny model. Negative controls: `test_processor_controls`.
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
from loopwright import Loopwright, Version, new_event_id
from shared.adapters.kafka import KafkaPublisher
from shared.api_keys import SCOPES
from shared.cloudevents import cloudevent
from shared.events import ChatResponse, Choice, Message
from shared.kafka_connection import KafkaConnection
from shared.topics import CHAT_RESPONSES
from tests.access import make_keys
from tests.fault.loop_oracle import violations

KILLS = 3
RESPONSES_BETWEEN_KILLS = 40
USERS_AT_ONCE = 8
TRAINED_WITHIN_S = 240.0
LEAVERS = [f"leaver-{number}" for number in range(5)]
SECRET = "the quiet blue lighthouse"


def publish_responses(kafka: str, names: Sequence[str]) -> None:
    """Publish responses as an app with its own model does."""
    publisher = KafkaPublisher(KafkaConnection(kafka), "sdk")
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
        publisher.publish(cloudevent(CHAT_RESPONSES, name, response, source="sdk", ce_id=name, at=now))
    assert publisher.flush(20) == 0
    publisher.close()


def give_feedback(loop: Loopwright, names: Sequence[str]) -> None:
    """Correct each response; repeat, edit or retract some corrections, and add thumbs of another user."""
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


def kill_processor_under_load(stack: LocalStack, loop: Loopwright) -> None:
    """Kill the processor repeatedly while users give feedback, each time once it is at work again."""
    for kill in range(KILLS):
        names = [f"k{kill}-{number}" for number in range(RESPONSES_BETWEEN_KILLS)]
        publish_responses(stack.urls["kafka"], names)
        load = [
            Thread(target=give_feedback, args=(loop, names[n::USERS_AT_ONCE])) for n in range(USERS_AT_ONCE)
        ]
        for user in load:
            user.start()
        stack.wait_ready(60, ["processor"])
        before = loop.status().ledger
        until_working(loop, before)
        os.kill(stack.pid_of("processor"), signal.SIGKILL)
        for user in load:
            user.join()
    stack.wait_ready(60, ["processor"])


def until_working(loop: Loopwright, before: dict[str, int], seconds: float = 20.0) -> None:
    """Wait until new outcomes show that the processor works."""
    deadline = time.monotonic() + seconds
    tick = Event()
    while loop.status().ledger == before and time.monotonic() < deadline:
        tick.wait(0.05)


def settled(loop: Loopwright, seconds: float) -> bool:
    """Wait until no feedback is pending. Return whether that happened in time."""
    deadline = time.monotonic() + seconds
    tick = Event()
    while time.monotonic() < deadline:
        if loop.status().pending == 0:
            return True
        tick.wait(0.25)
    return False


def kill_trainer_until_published(stack: LocalStack, loop: Loopwright) -> list[Version]:
    """Kill the trainer repeatedly, each time in another stage of its run, then let it finish."""
    killed_in: list[str] = []
    deadline, tick = time.monotonic() + TRAINED_WITHIN_S, Event()
    while time.monotonic() < deadline:
        trained = [version for version in loop.versions() if version.number]
        if trained:
            assert len(killed_in) == KILLS, f"the run ended after kills in {killed_in}: too short for {KILLS}"
            return trained
        progress = (loop.status().model_extra or {}).get("run") or {}
        here = f"{progress.get('stage')}/{progress.get('step')}"
        if len(killed_in) < KILLS and progress.get("stage") and here not in killed_in:
            killed_in.append(here)
            os.kill(stack.pid_of("trainer"), signal.SIGKILL)
            stack.wait_ready(60, ["trainer"])
        tick.wait(0.1)
    raise AssertionError(f"no version after {TRAINED_WITHIN_S} s; killed in {killed_in}")


def give_secret_feedback(stack: LocalStack, loop: Loopwright) -> None:
    """Let the users who will be erased give feedback with a secret."""
    names = [f"secret-{number}" for number in range(len(LEAVERS))]
    publish_responses(stack.urls["kafka"], names)
    for name, user in zip(names, LEAVERS, strict=True):
        loop.correct(name, user, f"It is {SECRET} of {user}.")


def erase_leavers(loop: Loopwright) -> set[str]:
    """Erase the users at the same time. Return the versions that were trained from any of them."""
    requests = [loop.erase(user).request_id for user in LEAVERS]
    erasures = [loop.wait_for_erasure(request_id, timeout=60) for request_id in requests]
    assert all(erasure.status == "done" and erasure.signals for erasure in erasures), erasures
    return {version for erasure in erasures for version in erasure.versions}


def files_with(folder: Path, secret: str) -> list[str]:
    """Return the files that contain a secret. Parquet files are decoded."""
    files = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = (
            str(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else path.read_bytes()
        )
        if secret.encode() in content:
            files.append(str(path.relative_to(folder)))
    return files


def make_stack(root: Path, tiny: Path, services: Sequence[str], keys: Path) -> LocalStack:
    return LocalStack(
        root,
        services=services,
        base_model=tiny,
        prepared=tiny.parent.parent,
        env={
            "LOOPWRIGHT_API_KEYS": str(keys),
            "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "1",
            "LOOPWRIGHT_PARTITIONS": "3",
            "LOOPWRIGHT_TRAINER_EXAMPLES": "1000",
            "LOOPWRIGHT_TRAINER_REPLAY_PROMPTS": "16",
            "LOOPWRIGHT_TRAINER_CHECKPOINT_STEPS": "2",
            "LOOPWRIGHT_TRAINER_GATE_NEW_TOKENS": "8",
            "LOOPWRIGHT_TRAINER_GATE_EVAL_PROMPTS": "8",
            "LOOPWRIGHT_TRAINER_GATE_SKILL_PROMPTS": "1",
            "LOOPWRIGHT_TRAINER_GATE_SAFETY_PROMPTS": "4",
        },
    )


def make_client(stack: LocalStack, key: str) -> Loopwright:
    return Loopwright(
        feedback_url=stack.urls["feedback"],
        console_url=stack.urls["console"],
        api_key=key,
    )


@pytest.mark.timeout(400)
def test_loop_killed_six_times_closes_with_one_version(tmp_path: Path, tiny_model: Path) -> None:
    services = ("feedback", "processor", "trainer", "rollout", "console")
    keys = tmp_path / "keys.json"
    key = make_keys(keys, {"tests": SCOPES})["tests"]
    with make_stack(tmp_path, tiny_model, services, keys) as stack, make_client(stack, key) as loop:
        give_secret_feedback(stack, loop)
        kill_processor_under_load(stack, loop)
        assert settled(loop, 30)
        result = loop.wait_for_result(loop.command("train_now").command_id, timeout=30)
        assert result.status == "done", result.message
        trained = kill_trainer_until_published(stack, loop)
        assert violations(stack.urls["kafka"]) == []
        kept = tmp_path / "data" / "trainer"
        assert files_with(kept, SECRET)
        # A fifth of all users are held out and train nothing, but hardly all five of these.
        assert erase_leavers(loop) == {trained[0].version}
        assert files_with(kept, SECRET) == []
    assert [version.number for version in trained] == [1]
