"""I9, I10: a bad version that passed its gate becomes the canary, and its users' votes roll it back without help.

Everything is real but the trainer: Kafka, Redis, inference with a tiny model, feedback, processor, rollout and console.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from openai import OpenAI
from tenacity import Retrying, retry_if_not_result, stop_after_delay, wait_fixed

from loopwright import Loopwright, RolloutState, new_event_id
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import find_base
from shared.adapters.kafka import KafkaPublisher
from shared.events import LogRecord
from shared.kafka_connection import KafkaConnection
from shared.records import Output
from shared.topics import MODEL_VERSIONS
from shared.versions import DatasetRef, GateReport, ModelVersion, VersionRef
from tests.brokers import own_kafka
from tests.inference_factories import LINE, make_adapter, version_ref
from tests.integration.service_process import Service, running

P = 2
NOW = datetime(2026, 3, 4, tzinfo=UTC)
MAX_USERS = 900
SETTLE_S = 4.0


@dataclass
class Loop:
    """The running services, and what the simulated users saw."""

    kafka: str
    base: VersionRef
    bad: VersionRef
    services: dict[str, Service]
    client: Loopwright
    chats: OpenAI
    answers: Counter[str] = field(default_factory=Counter)

    def publish(self, record: LogRecord) -> None:
        publisher = KafkaPublisher(KafkaConnection(self.kafka), "trainer")
        publisher.publish(Output(MODEL_VERSIONS.name, b"k", record.to_json(), partition=0)).result(10)
        publisher.close()

    def visit(self, number: int) -> str:
        """Ask once as a new user, and vote: down if the bad version answered. Return the version."""
        user = f"visitor-{number}"
        answer = self.chats.chat.completions.create(
            model=LINE,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=2,
            temperature=0,
            user=user,
        )
        vote = self.client.thumbs_down if answer.model == self.bad.version else self.client.thumbs_up
        vote(answer.id, user)
        self.answers[answer.model] += 1
        return answer.model

    def state(self) -> RolloutState:
        return self.client.rollout(LINE)


@pytest.fixture(scope="module")
def loop(tiny_model: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    folder = tmp_path_factory.mktemp("canary")
    base = find_base(str(tiny_model)).ref(LINE)
    store = LocalArtifactStore(folder / "artifacts")
    bad = version_ref(LINE, 1, store.put(make_adapter(tiny_model, folder / "v1", seed=1))[1])
    with ExitStack() as stack:
        kafka = stack.enter_context(own_kafka(folder, partitions=P))
        env = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka,
            "REDIS_URL": redis_url.rsplit("/", 1)[0] + "/9",
            "LOOPWRIGHT_PARTITIONS": str(P),
            "LOOPWRIGHT_LINE": LINE,
            "LOOPWRIGHT_PSEUDONYM_KEY": "a key that only this test has",
            "LOOPWRIGHT_DATA_DIR": str(folder / "data"),
            "LOOPWRIGHT_ARTIFACTS": str(folder / "artifacts"),
            "LOOPWRIGHT_BASE_MODEL": str(tiny_model),
            "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "0.5",
            "LOOPWRIGHT_ROLLOUT_POLICY": "canary",
            "LOOPWRIGHT_ROLLOUT_CANARY_FEEDBACK_USERS": "0",
            "LOOPWRIGHT_ROLLOUT_CANARY_SETTLE_SECONDS": str(SETTLE_S),
        }
        names = ("processor", "rollout", "feedback", "console", "inference")
        # Inference loads torch and a model.
        services = {name: stack.enter_context(running(name, folder, env, start_s=150)) for name in names}
        urls = {name: str(service.http.base_url) for name, service in services.items()}
        client = stack.enter_context(Loopwright(feedback_url=urls["feedback"], console_url=urls["console"]))
        chats = OpenAI(base_url=f"{urls['inference'].rstrip('/')}/v1", api_key="none", timeout=60)
        stack.callback(chats.close)
        yield Loop(kafka, base, bad, services, client, chats)


def until(condition: object, seconds: float = 60) -> object:
    waiting = Retrying(
        stop=stop_after_delay(seconds), wait=wait_fixed(0.2), retry=retry_if_not_result(bool), reraise=True
    )
    return waiting(condition)  # type: ignore[arg-type]


@pytest.mark.timeout(420)
def test_bad_canary_is_rolled_back_by_its_users(loop: Loop) -> None:
    loop.publish(
        ModelVersion(line=LINE, ref=loop.base, base=loop.base.version, base_model="tiny", created_at=NOW)
    )
    until(lambda: loop.client.status(LINE).serving is not None)
    first = loop.chats.chat.completions.create(
        model=LINE, messages=[{"role": "user", "content": "hello"}], max_tokens=2, user="ann"
    )
    event_id = new_event_id()
    loop.client.correct(first.id, "ann", "Hello, Ann.", event_id=event_id)
    until(lambda: loop.client.receipt(first.id, event_id).stage == "batched")

    loop.publish(  # the gate was wrong
        ModelVersion(
            line=LINE, ref=loop.bad, number=1, base=loop.base.version, base_model="tiny", run_id="r1",
            dataset=DatasetRef(digest="d" * 64, examples=1, users=1, through={str(n): 9 for n in range(P)}),
            gate=GateReport(verdict="passed", gated_against=loop.base.version), created_at=NOW,
        )
    )  # fmt: skip
    until(lambda: loop.state().canary == loop.bad.version)
    assert until(lambda: loop.client.receipt(first.id, event_id).stage == "canary")
    threading.Event().wait(SETTLE_S)

    visited = 0
    with ThreadPoolExecutor(8) as users:
        while visited < MAX_USERS and loop.state().action == "canary":
            list(users.map(loop.visit, range(visited, visited + 40)))
            visited += 40
    state = until(lambda: (found := loop.state()).action == "rollback" and found)
    assert isinstance(state, RolloutState)
    assert (state.canary, state.stable, state.paused) == (None, loop.base.version, True)
    assert "worse" in state.reason and state.test is not None
    assert state.test.harm_p <= state.test.harm_alpha
    assert state.test.canary.mean == 0.0 and state.test.stable.mean == 1.0
    saw_it = loop.answers[loop.bad.version]
    assert 0 < saw_it < 0.25 * visited, loop.answers
    assert state.points, "the console has no intervals over time"

    receipt = loop.client.receipt(first.id, event_id)
    assert (receipt.stage, receipt.serving) == ("rolled_back", False)
    until(lambda: {loop.visit(5_000 + n) for n in range(40)} == {loop.base.version}, 60)
    page = loop.services["console"].http.get(f"/api/rollout/{LINE}").json()
    assert page["test"]["canary"]["version"] == loop.bad.version
    assert loop.client.status(LINE).ledger.get("dead", 0) == 0
