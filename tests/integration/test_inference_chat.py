"""The official `openai` client against a real (tiny) model: chats, streams, swaps under load."""

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
from tests.inference_factories import LINE, make_adapter, reference, rollout
from tests.integration.inference_server import Server

USER: Any = [{"role": "user", "content": "Which lid fits the kettle?"}]


@dataclass(frozen=True)
class World:
    server: Server
    v1: VersionRef
    v2: VersionRef
    folder: Path


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("inference")
    server = Server(tiny_model, folder / "artifacts")
    refs = []
    for number in (1, 2):
        _, digest = server.store.put(make_adapter(tiny_model, folder / f"v{number}", seed=number))
        refs.append(reference(LINE, number, digest))
    yield World(server, *refs, folder)
    server.stop()


@pytest.fixture
def server(world: World) -> Server:
    return world.server


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


def promote(server: Server, ref: VersionRef, **also: Any) -> None:
    newest = server.takeover._newest
    server.takeover.apply(rollout(newest.seq + 1 if newest else 1, ref, **also))


def say(client: OpenAI, model: str = LINE, **also: Any) -> Any:
    fields = {"messages": USER, "temperature": 0, "max_tokens": 12} | also
    return client.chat.completions.create(model=model, **fields)


def test_a_whole_answer(client: OpenAI, server: Server) -> None:
    answer = say(client, user="anna")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens <= 12
    record = server.records()[answer.id]
    assert record.text_of(0) == answer.choices[0].message.content
    assert record.version == answer.model
    assert abs(to_ms(record.created_at) - answer.created * 1000) < 60_000


def test_a_streamed_answer_is_the_whole_one_in_pieces(client: OpenAI, server: Server) -> None:
    whole = say(client)
    chunks = list(say(client, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.model for chunk in chunks} == {whole.model}
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert server.records()[chunks[0].id].status == "completed"


def test_two_choices_drawn_by_chance_differ_and_a_seed_brings_them_back(client: OpenAI) -> None:
    texts = [
        [
            choice.message.content
            for choice in say(client, temperature=2, n=2, seed=seed, max_tokens=24).choices
        ]
        for seed in (5, 5, 6)
    ]
    assert len(texts[0]) == 2
    assert texts[0][0] != texts[0][1]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_a_stop_string_is_not_in_the_answer(client: OpenAI) -> None:
    whole = say(client, temperature=2, seed=11, max_tokens=24).choices[0].message.content
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    answer = say(client, temperature=2, seed=11, max_tokens=24, stop=[stop])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_streamed_pieces_never_split_a_character(client: OpenAI) -> None:
    """At this temperature the tokens are a jumble of bytes: what is no character shows the same in both forms."""
    fields: dict[str, Any] = {"temperature": 2, "seed": 3, "max_tokens": 60}
    whole = say(client, **fields).choices[0].message.content
    chunks = list(say(client, stream=True, **fields))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole
    assert any(not text.isascii() for text in pieces)


def test_an_unknown_model_and_too_much_text_are_the_clients_own_errors(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as unknown:
        say(client, model="gpt-4o")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as long:
        say(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert long.value.code == "context_length_exceeded"


def test_the_models_are_listed(client: OpenAI, server: Server) -> None:
    assert {LINE, server.base.version} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(LINE).owned_by == "loopwright"


def test_versions_answer_differently_and_the_base_stays_as_it_was(client: OpenAI, world: World) -> None:
    before = say(client, model=world.server.base.version).choices[0].message.content
    promote(world.server, world.v1, canary=world.v2, share=0.5)
    texts = {
        ref.version: say(client, model=ref.version).choices[0].message.content
        for ref in (world.v1, world.v2, world.server.base)
    }
    assert len(set(texts.values())) == 3
    assert texts[world.server.base.version] == before
    served = {say(client, user=f"user {n}", max_tokens=1).model for n in range(24)}
    assert served == {world.v1.version, world.v2.version}


def test_swaps_under_load_fail_no_request_and_mix_no_versions(world: World) -> None:
    """I8, I9: every answer is, from first to last token, the text that its version gives."""
    server, refs = world.server, (world.v1, world.v2)
    expected = {}
    with server.client() as client:
        for ref in refs:
            promote(server, ref)
            expected[ref.version] = say(client, max_tokens=16).choices[0].message.content
        assert len(set(expected.values())) == 2
    stop, answers, failures = threading.Event(), [], []

    def chat(number: int) -> None:
        with server.client() as client:
            while not stop.is_set():
                try:
                    if number % 2:
                        answer = say(client, max_tokens=16)
                        answers.append((answer.model, answer.choices[0].message.content))
                    else:
                        chunks = list(say(client, stream=True, max_tokens=16))
                        [model] = {chunk.model for chunk in chunks}
                        answers.append((model, "".join(c.choices[0].delta.content or "" for c in chunks)))
                except (OpenAIError, ValueError) as error:
                    failures.append(repr(error))

    with ThreadPoolExecutor(6) as pool:
        chats = [pool.submit(chat, number) for number in range(6)]
        for flip in range(4):
            enough = len(answers) + 6
            deadline = time.monotonic() + 20
            while len(answers) < enough and time.monotonic() < deadline and not failures:
                stop.wait(0.01)
            promote(server, refs[flip % 2])
        stop.set()
        for done in chats:
            done.result(30)
    assert failures == []
    assert {version for version, _ in answers} == set(expected)
    wrong = [(version, text) for version, text in answers if text != expected[version]]
    assert wrong == []
    assert server.serving.in_memory() == {server.base.version: 0, world.v2.version: 0}


def broken(world: World, name: str, edit: Any) -> VersionRef:
    model = Path(world.server.prompts._tokenizer.name_or_path)
    folder = make_adapter(model, world.folder / name, seed=9, edit=edit)
    return reference(LINE, 9, world.server.store.put(folder)[1])


def other_size(adapter: Any) -> None:
    layer = next(module for name, module in adapter.named_modules() if name.endswith("lora_A.default"))
    layer.weight = torch.nn.Parameter(torch.ones(4, 7))


def not_finite(adapter: Any) -> None:
    with torch.no_grad():
        next(weight for name, weight in adapter.named_parameters() if "lora_A" in name).fill_(float("nan"))


@pytest.mark.parametrize(
    ("edit", "why"), [(other_size, "another base"), (not_finite, "not finite")], ids=["size", "nan"]
)
def test_an_adapter_that_does_not_fit_is_refused_and_the_last_good_serves(
    world: World, client: OpenAI, edit: Any, why: str
) -> None:
    server = world.server
    promote(server, world.v1)
    before = say(client).choices[0].message.content
    promote(server, broken(world, f"broken {why}", edit))
    assert why in server.takeover.refusals[0].message
    answer = say(client)
    assert (answer.model, answer.choices[0].message.content) == (world.v1.version, before)
    listed = client.models.retrieve(LINE).model_extra
    assert listed is not None
    assert why in listed["loopwright"]["refused"][0]["message"]
    promote(server, world.v2)
    assert say(client).model == world.v2.version


def test_a_tampered_artifact_is_refused_and_the_old_version_serves(world: World, client: OpenAI) -> None:
    server = world.server
    promote(server, world.v1)
    ref = broken(world, "tampered", None)
    weights = world.folder / "artifacts" / ref.digest / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    promote(server, ref)
    assert "altered" in server.takeover.refusals[0].message
    assert say(client).model == world.v1.version


def test_a_client_that_goes_away_frees_its_row_and_is_recorded_as_cancelled(
    server: Server, client: OpenAI
) -> None:
    known = set(server.records())
    stream = say(client, stream=True, temperature=1, max_tokens=1024)
    first = next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 20
    while first.id not in server.records() and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    record = server.records()[first.id]
    assert record.status == "cancelled"
    assert record.usage.completion_tokens < 1024
    assert set(server.records()) - known == {first.id}
    assert sum(server.serving.in_memory().values()) == 0


def test_a_client_that_gives_up_on_a_whole_answer_is_recorded_as_cancelled(server: Server) -> None:
    known = set(server.records())
    with server.client(timeout=0.3) as hasty, pytest.raises(Exception, match="timed out"):
        say(hasty, temperature=1, max_tokens=1024, n=8)
    deadline = time.monotonic() + 20
    while set(server.records()) == known and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    [name] = set(server.records()) - known
    assert server.records()[name].status == "cancelled"
