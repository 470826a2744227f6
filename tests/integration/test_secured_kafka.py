"""A Kafka of the user's own: TLS, SASL and prefixed ACLs, and two deployments on one cluster.

The broker denies whatever no ACL allows, so these tests also show that the documented ACLs are enough.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import httpx
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from deploy.kafka_acls import PRINCIPALS, Acl, acls_of
from deploy.local.java import find_java
from deploy.local.kafka import java_command
from deploy.local.services import SERVICES, port_setting
from deploy.local.stack import LocalStack, not_ready_reason
from examples.world import load_world
from loopwright import Command, Loopwright, Version, new_event_id
from shared.adapters.kafka import KafkaPublisher
from shared.cloudevents import cloudevent
from shared.events import ChatResponse, Choice, Message
from shared.topics import CHAT_RESPONSES, TOPICS
from tests.secured_kafka import PLAIN_USERS, SecuredKafka, secured_kafka
from tests.trainer_fixture import wait_until

P = 2
USERS = 40
LOOP_S = 240.0
PLAIN_USER = PLAIN_USERS[0]
WITHOUT_INFERENCE = tuple(name for name in SERVICES if name != "inference")
SMALL = {
    "LOOPWRIGHT_PARTITIONS": str(P),
    "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "1",
    "LOOPWRIGHT_PROCESSOR_LIVE_VIEW": "true",
    "LOOPWRIGHT_TRAINER_EXAMPLES": "1000",  # a run starts with a command
    "LOOPWRIGHT_TRAINER_EPOCHS": "1",
    "LOOPWRIGHT_TRAINER_RANK": "4",
    "LOOPWRIGHT_TRAINER_REPLAY_PROMPTS": "4",
    "LOOPWRIGHT_TRAINER_REPLAY_NEW_TOKENS": "6",
    "LOOPWRIGHT_TRAINER_GATE_ITEMS": "1",
    "LOOPWRIGHT_TRAINER_GATE_NEW_TOKENS": "4",
    "LOOPWRIGHT_TRAINER_GATE_EVAL_PROMPTS": "4",
    "LOOPWRIGHT_TRAINER_GATE_SKILL_PROMPTS": "1",
    "LOOPWRIGHT_TRAINER_GATE_SAFETY_PROMPTS": "4",
}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with secured_kafka(tmp_path_factory.mktemp("secured")) as kafka:
        yield kafka


def all_acls(namespace: str, principal: str) -> list[Acl]:
    """Return what one principal needs if it runs the whole deployment."""
    return [acl for part in PRINCIPALS for acl in acls_of(part, namespace, principal)]


def user_per_service(kafka: SecuredKafka, namespace: str) -> dict[str, str]:
    """Create a SCRAM user for every part of a deployment, each with its own ACLs; return their names."""
    users = {part: kafka.add_user(f"{namespace}-{part}") for part in PRINCIPALS}
    kafka.allow(acl for part, user in users.items() for acl in acls_of(part, namespace, user))
    return users


def make_stack(
    kafka: SecuredKafka,
    root: Path,
    tiny: Path,
    namespace: str,
    users: dict[str, str],
    services: Sequence[str],
) -> LocalStack:
    configs = {part: kafka.config_file(user) for part, user in users.items()}

    def run_as(part: str, module: str) -> list[str]:
        return ["env", f"LOOPWRIGHT_KAFKA_CONFIG={configs[part]}", sys.executable, "-m", module]

    commands = {name: run_as(name, f"services.{name}") for name in services}
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka.servers,
        "LOOPWRIGHT_KAFKA_CONFIG": str(configs["topics"]),
        "LOOPWRIGHT_NAMESPACE": namespace,
    }
    any_ports = {port_setting(service): "0" for service in services}
    return LocalStack(
        root,
        services=services,
        base_model=tiny,
        prepared=tiny.parent.parent,
        commands=commands | {"topics": run_as("topics", "shared.adapters.topic_admin")},
        env=SMALL | any_ports | env,
    )


def make_client(stack: LocalStack) -> Loopwright:
    return Loopwright(feedback_url=stack.urls["feedback"], console_url=stack.urls["console"])


def record_responses(kafka: SecuredKafka, user: str, namespace: str, names: Sequence[str]) -> None:
    """Publish responses to the log as an app with its own model does."""
    publisher = KafkaPublisher(kafka.connection(user, namespace), "sdk")
    now = datetime.now(UTC)
    for name, (question, _) in zip(names, corrections(), strict=True):
        response = ChatResponse(
            line="assistant",
            response_id=name,
            version="own-model-1",
            messages=(Message(role="user", content=question),),
            choices=(Choice(index=0, text="I do not know."),),
            created_at=now,
        )
        publisher.publish(
            cloudevent(CHAT_RESPONSES, name, response, source="sdk", ce_id=name, at=now)
        ).result(20)
    publisher.close()


def corrections() -> list[tuple[str, str]]:
    """Return one question and its answer per user."""
    world = load_world()
    facts = [world.facts[number % len(world.facts)] for number in range(USERS)]
    return [(world.trained_wordings(fact)[0], fact.answers[0]) for fact in facts]


def chat(stack: LocalStack, user: str, text: str) -> dict[str, str]:
    """Ask the model. Returns the response's id and its version."""
    body = {
        "model": "assistant",
        "user": user,
        "max_tokens": 4,
        "messages": [{"role": "user", "content": text}],
    }
    response = httpx.post(f"{stack.urls['inference']}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer = response.json()
    return {"id": answer["id"], "version": answer["model"]}


def correct_all(loop: Loopwright, names: Sequence[str], mark: str) -> None:
    for number, (name, (_, answer)) in enumerate(zip(names, corrections(), strict=True)):
        loop.correct(name, f"{mark}-user-{number}", f"{answer} ({mark})", event_id=new_event_id())


def execute(loop: Loopwright, command: Command) -> None:
    result = loop.wait_for_result(command.command_id, timeout=60)
    assert result.status == "done", result.message


def wait_for_version(loop: Loopwright) -> Version:
    return wait_until(
        lambda: [version for version in loop.versions() if version.number], LOOP_S, "a version"
    )[0]


def wait_for_swap(stack: LocalStack, version: str) -> None:
    wait_until(lambda: chat(stack, "alpha-user-1", "Now?")["version"] == version, 60, f"chats by {version}")


def replay_garbage(kafka: SecuredKafka, loop: Loopwright, namespace: str) -> None:
    """Write an unreadable record to an input, and replay its dead letter, which names the topic without its prefix."""
    producer = Producer({"bootstrap.servers": kafka.admin_servers})
    producer.produce(f"{namespace}.feedback.events", b"garbage", b"garbage")
    assert producer.flush(20) == 0
    letter = wait_until(lambda: loop.dead_letters().dead_letters, 60, "a dead letter")[0]
    assert letter.topic == "feedback.events"
    execute(loop, loop.replay([letter.position]))


def names_on(kafka: SecuredKafka, libs: Path) -> dict[str, set[str]]:
    """Return the names of all topics, groups and transactional ids on the cluster."""
    groups = kafka.admin.list_consumer_groups(request_timeout=20).result()
    tool = java_command(
        find_java(), libs, "org.apache.kafka.tools.TransactionsCommand",
        "--bootstrap-server", kafka.admin_servers, "list",
    )  # fmt: skip
    listed = subprocess.run(tool, capture_output=True, text=True, check=True).stdout.splitlines()
    return {
        "topics": {name for name in kafka.admin.list_topics(timeout=20).topics if not name.startswith("__")},
        "groups": {group.group_id for group in groups.valid},
        "transactional ids": {line.split()[0] for line in listed[1:] if line.split()},
    }


def contents_of(kafka: SecuredKafka, topics: Iterable[str]) -> bytes:
    """Return all keys and values of these topics."""
    reader = Consumer(
        {"bootstrap.servers": kafka.admin_servers, "group.id": "oracle", "enable.partition.eof": True}
    )
    partitions = [
        TopicPartition(topic, number, OFFSET_BEGINNING)
        for topic in topics
        for number in reader.list_topics(topic, 20).topics[topic].partitions
    ]
    reader.assign(partitions)
    found, left = bytearray(), len(partitions)
    while left:
        for message in reader.consume(1_000, 5.0):
            if message.error() is None:
                found += (message.key() or b"") + b"\n" + (message.value() or b"") + b"\n"
            else:
                left -= 1
    reader.close()
    return bytes(found)


@pytest.mark.timeout(500)
def test_two_deployments_close_their_loops_on_one_cluster(
    secured: SecuredKafka, tmp_path: Path, tiny_model: Path
) -> None:
    """`alpha` has a user for each service and `beta` has one for all. Each loop ends with its new version serving."""
    alpha_users = user_per_service(secured, "alpha")
    secured.allow(all_acls("beta", PLAIN_USER))
    beta_users = dict.fromkeys(PRINCIPALS, PLAIN_USER)
    names = {space: [f"{space}-{n}" for n in range(USERS)] for space in ("alpha", "beta")}
    with ExitStack() as open_parts:
        alpha = make_stack(secured, tmp_path / "alpha", tiny_model, "alpha", alpha_users, SERVICES)
        beta = make_stack(secured, tmp_path / "beta", tiny_model, "beta", beta_users, WITHOUT_INFERENCE)
        for stack in (alpha, beta):
            stack.start()
            open_parts.callback(stack.stop)
        for stack in (alpha, beta):
            stack.wait_ready()
        record_responses(secured, alpha_users["sdk"], "alpha", names["alpha"])
        record_responses(secured, PLAIN_USER, "beta", names["beta"])
        loops = {
            "alpha": open_parts.enter_context(make_client(alpha)),
            "beta": open_parts.enter_context(make_client(beta)),
        }
        chatted = chat(alpha, "alpha-user-1", "What is it?")
        loops["alpha"].thumbs_down(chatted["id"], "alpha-user-1")
        for space, loop in loops.items():
            correct_all(loop, names[space], space)
            wait_until(lambda loop=loop: loop.status().pending == 0, 60, "outcomes")  # type: ignore[misc]
            execute(loop, loop.command("train_now"))
        replay_garbage(secured, loops["beta"], "beta")
        for space, loop in loops.items():
            version = wait_for_version(loop)
            # The gate passes no version of a model that cannot answer, so a person decides.
            execute(loop, loop.command("pin", version=version.version))
            serving = loop.status().serving
            assert serving is not None
            assert serving.version == version.version
            if space == "alpha":
                wait_for_swap(alpha, version.version)
    found = names_on(secured, tiny_model.parent.parent / "kafka" / "libs")
    assert all(name.startswith(("alpha.", "beta.")) for each in found.values() for name in each), found
    for space, other in (("alpha", "beta"), ("beta", "alpha")):
        assert found["topics"] >= {f"{space}.{topic}" for topic in TOPICS}
        assert {f"{space}.loopwright-processor", f"{space}.loopwright-rollout"} <= found["groups"]
        assert any(name.startswith(f"{space}.loopwright-processor") for name in found["transactional ids"])
        contents = contents_of(secured, [f"{space}.{topic}" for topic in TOPICS])
        assert f"({space})".encode() in contents
        assert f"({other})".encode() not in contents
        assert f"{other}-".encode() not in contents


@pytest.mark.timeout(300)
def test_services_wait_for_credentials_and_permissions(
    secured: SecuredKafka, tmp_path: Path, tiny_model: Path
) -> None:
    """Every service says what is missing, keeps running, and is ready once a person has granted it."""
    users = {part: secured.add_user(f"gamma-{part}") for part in PRINCIPALS}
    secured.allow(acls_of("topics", "gamma", users["topics"]))
    stack = make_stack(secured, tmp_path, tiny_model, "gamma", users, WITHOUT_INFERENCE)
    for service in WITHOUT_INFERENCE:
        secured.set_password(users[service], "another-password")
    stack.start()
    try:
        wait_for_reasons(stack, "refuses the credentials")
        pids = {service: stack.pid_of(service) for service in WITHOUT_INFERENCE}
        for service in WITHOUT_INFERENCE:
            secured.set_password(users[service], secured.passwords[users[service]])
        wait_for_reasons(stack, "the principal may not read gamma.")
        for service in WITHOUT_INFERENCE:
            secured.allow(acls_of(service, "gamma", users[service]))
        stack.wait_ready(90)
        assert {service: stack.pid_of(service) for service in WITHOUT_INFERENCE} == pids, "none was restarted"
        with make_client(stack) as loop:
            loop.thumbs_down("resp-gamma", "gamma-user-1")
    finally:
        stack.stop()


def wait_for_reasons(stack: LocalStack, text: str, seconds: float = 90.0) -> None:
    """Wait until every service is not ready for a reason that contains `text`."""
    deadline, tick = time.monotonic() + seconds, Event()
    while True:
        reasons = {service: not_ready_reason(stack.urls[service]) or "ready" for service in WITHOUT_INFERENCE}
        if all(text in reason for reason in reasons.values()):
            return
        assert time.monotonic() < deadline, reasons
        tick.wait(0.2)
