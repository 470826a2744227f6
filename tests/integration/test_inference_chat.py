"""The official `openai` client against a tiny real model: chats, streams, and swaps under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import BadRequestError, NotFoundError, OpenAI, OpenAIError

from shared.events import to_ms
from shared.versions import VersionRef
from tests.inference_factories import LINE, make_adapter, rollout_record, version_ref
from tests.integration.inference_server import InferenceServer

MESSAGES: Any = [{"role": "user", "content": "Which lid fits the kettle?"}]


@dataclass(frozen=True)
class World:
    """A server with two versions in its artifact store."""

    server: InferenceServer
    v1: VersionRef
    v2: VersionRef
    folder: Path


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("inference")
    server = InferenceServer(tiny_model, folder / "artifacts")
    refs = []
    for number in (1, 2):
        _, digest = server.store.put(make_adapter(tiny_model, folder / f"v{number}", seed=number))
        refs.append(version_ref(LINE, number, digest))
    yield World(server, *refs, folder)
    server.stop()


@pytest.fixture
def server(world: World) -> InferenceServer:
    return world.server


@pytest.fixture
def client(server: InferenceServer) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


def promote(server: InferenceServer, ref: VersionRef, **fields: Any) -> None:
    newest = server.swap._newest
    server.swap.apply(rollout_record(newest.seq + 1 if newest else 1, ref, **fields))


def chat(client: OpenAI, model: str = LINE, **fields: Any) -> Any:
    defaults = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    return client.chat.completions.create(model=model, **(defaults | fields))


def test_answer_equals_its_record(client: OpenAI, server: InferenceServer) -> None:
    answer = chat(client, user="anna")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens <= 12
    record = server.records()[answer.id]
    assert record.text_of(0) == answer.choices[0].message.content
    assert record.version == answer.model
    assert abs(to_ms(record.created_at) - answer.created * 1000) < 60_000


def test_streamed_answer_joins_to_the_unstreamed_one(client: OpenAI, server: InferenceServer) -> None:
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.model for chunk in chunks} == {whole.model}
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert server.records()[chunks[0].id].status == "completed"


def test_sampled_choices_differ_and_a_seed_reproduces_them(client: OpenAI) -> None:
    texts = [
        [
            choice.message.content
            for choice in chat(client, temperature=2, n=2, seed=seed, max_tokens=24).choices
        ]
        for seed in (5, 5, 6)
    ]
    assert len(texts[0]) == 2
    assert texts[0][0] != texts[0][1]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_stop_string_is_not_in_the_answer(client: OpenAI) -> None:
    whole = chat(client, temperature=2, seed=11, max_tokens=24).choices[0].message.content
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    answer = chat(client, temperature=2, seed=11, max_tokens=24, stop=[stop])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_streamed_pieces_never_split_a_character(client: OpenAI) -> None:
    """At this temperature, many tokens are only part of a character."""
    fields: dict[str, Any] = {"temperature": 2, "seed": 3, "max_tokens": 60}
    whole = chat(client, **fields).choices[0].message.content
    chunks = list(chat(client, stream=True, **fields))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole
    assert any(not text.isascii() for text in pieces)


def test_unknown_model_and_long_conversation_are_client_errors(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as unknown:
        chat(client, model="gpt-4o")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as long:
        chat(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert long.value.code == "context_length_exceeded"


def test_line_and_base_are_listed_as_models(client: OpenAI, server: InferenceServer) -> None:
    assert {LINE, server.base.version} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(LINE).owned_by == "loopwright"


def test_versions_answer_differently_and_the_base_is_unchanged(client: OpenAI, world: World) -> None:
    before = chat(client, model=world.server.base.version).choices[0].message.content
    promote(world.server, world.v1, canary=world.v2, share=0.5)
    texts = {
        ref.version: chat(client, model=ref.version).choices[0].message.content
        for ref in (world.v1, world.v2, world.server.base)
    }
    assert len(set(texts.values())) == 3
    assert texts[world.server.base.version] == before
    served = {chat(client, user=f"user {n}", max_tokens=1).model for n in range(24)}
    assert served == {world.v1.version, world.v2.version}


def test_swaps_under_load_fail_no_request_and_mix_no_versions(world: World) -> None:
    """I8, I9: every answer is the text that its version generates when nothing is swapped."""
    server, refs = world.server, (world.v1, world.v2)
    expected = {}
    with server.client() as client:
        for ref in refs:
            promote(server, ref)
            expected[ref.version] = chat(client, max_tokens=16).choices[0].message.content
        assert len(set(expected.values())) == 2
    stop, answers, failures = threading.Event(), [], []

    def keep_chatting(number: int) -> None:
        with server.client() as client:
            while not stop.is_set():
                try:
                    if number % 2:
                        answer = chat(client, max_tokens=16)
                        answers.append((answer.model, answer.choices[0].message.content))
                    else:
                        chunks = list(chat(client, stream=True, max_tokens=16))
                        [model] = {chunk.model for chunk in chunks}
                        answers.append((model, "".join(c.choices[0].delta.content or "" for c in chunks)))
                except (OpenAIError, ValueError) as error:
                    failures.append(repr(error))

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(keep_chatting, number) for number in range(6)]
        for flip in range(4):
            enough = len(answers) + 6
            deadline = time.monotonic() + 20
            while len(answers) < enough and time.monotonic() < deadline and not failures:
                stop.wait(0.01)
            promote(server, refs[flip % 2])
        stop.set()
        for running in clients:
            running.result(30)
    assert failures == []
    assert {version for version, _ in answers} == set(expected)
    wrong = [(version, text) for version, text in answers if text != expected[version]]
    assert wrong == []
    assert server.registry.in_flight() == {server.base.version: 0, world.v2.version: 0}


def put_adapter(world: World, name: str, edit: Any) -> VersionRef:
    folder = make_adapter(world.server.model, world.folder / name, seed=9, edit=edit)
    return version_ref(LINE, 9, world.server.store.put(folder)[1])


def resize_weight(adapter: Any) -> None:
    layer = next(module for name, module in adapter.named_modules() if name.endswith("lora_A.default"))
    layer.weight = torch.nn.Parameter(torch.ones(4, 7))


def set_nan(adapter: Any) -> None:
    with torch.no_grad():
        next(weight for name, weight in adapter.named_parameters() if "lora_A" in name).fill_(float("nan"))


@pytest.mark.parametrize(
    ("edit", "reason"), [(resize_weight, "another base"), (set_nan, "not finite")], ids=["size", "nan"]
)
def test_unusable_adapter_is_refused_and_the_last_version_serves(
    world: World, client: OpenAI, edit: Any, reason: str
) -> None:
    server = world.server
    promote(server, world.v1)
    before = chat(client).choices[0].message.content
    promote(server, put_adapter(world, f"broken {reason}", edit))
    assert reason in server.swap.refusals[0].message
    answer = chat(client)
    assert (answer.model, answer.choices[0].message.content) == (world.v1.version, before)
    listed = client.models.retrieve(LINE).model_extra
    assert listed is not None
    assert reason in listed["loopwright"]["refused"][0]["message"]
    promote(server, world.v2)
    assert chat(client).model == world.v2.version


def test_tampered_artifact_is_refused_and_the_old_version_serves(world: World, client: OpenAI) -> None:
    server = world.server
    promote(server, world.v1)
    ref = put_adapter(world, "tampered", None)
    weights = world.folder / "artifacts" / ref.digest / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    promote(server, ref)
    assert "altered" in server.swap.refusals[0].message
    assert chat(client).model == world.v1.version


def test_disconnect_during_a_stream_is_recorded_as_cancelled(server: InferenceServer, client: OpenAI) -> None:
    known = set(server.records())
    stream = chat(client, stream=True, temperature=1, max_tokens=1024)
    first = next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 20
    while first.id not in server.records() and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    record = server.records()[first.id]
    assert record.status == "cancelled"
    assert record.usage.completion_tokens < 1024
    assert set(server.records()) - known == {first.id}
    assert sum(server.registry.in_flight().values()) == 0


def test_timeout_of_an_unstreamed_answer_is_recorded_as_cancelled(server: InferenceServer) -> None:
    known = set(server.records())
    with server.client(timeout=0.3) as hasty, pytest.raises(Exception, match="timed out"):
        chat(hasty, temperature=1, max_tokens=1024, n=8)
    deadline = time.monotonic() + 20
    while set(server.records()) == known and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    [name] = set(server.records()) - known
    assert server.records()[name].status == "cancelled"
