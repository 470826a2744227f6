"""The rules for LoRA versions on vLLM, each learned from a bug there: no failed and no mixed request in a swap."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.inference.engine.vllm.engine import VllmEngine
from services.inference.version_registry import VersionRegistry
from shared.errors import Misconfigured, Retryable
from tests.fake_vllm import FakeVllm
from tests.inference_factories import (
    BASE,
    LINE,
    RecordingListener,
    generation_request,
    make_adapter,
    make_vllm_engine,
    rollout_record,
    submit,
    version_ref,
    wait_until,
)

V1, V2 = version_ref(LINE, 1), version_ref(LINE, 2)


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        ref.version: make_adapter(tiny_model, folder / ref.version, seed) for seed, ref in ((1, V1), (2, V2))
    }


@pytest.fixture
def servers(tiny_model: Path) -> Iterator[list[FakeVllm]]:
    servers = [FakeVllm(str(tiny_model)) for _ in range(2)]
    yield servers
    for server in servers:
        server.close()


@pytest.fixture
def engine(servers: list[FakeVllm], tiny_model: Path, tmp_path: Path) -> Iterator[VllmEngine]:
    statuses: list[tuple[bool, str]] = []
    engine = make_vllm_engine(
        servers,
        tiny_model,
        tmp_path / "adapters",
        on_status=lambda ok, detail: statuses.append((ok, detail)),
    )
    engine.start().result(20)
    wait_until(lambda: statuses[-1] == (True, ""))  # all servers are ready, not only the first
    yield engine
    engine.stop(5)


def start_error(tiny_model: Path, tmp_path: Path, **server: Any) -> str:
    """Start an engine in front of a server that it must refuse, and return the error."""
    fake = FakeVllm(str(tiny_model), **server)
    engine = make_vllm_engine([fake], tiny_model, tmp_path / "adapters")
    try:
        with pytest.raises(Misconfigured) as error:
            engine.start().result(20)
        return str(error.value)
    finally:
        engine.stop(1)
        fake.close()


def answer(engine: VllmEngine, version: str, **fields: Any) -> str:
    listener = RecordingListener()
    submit(engine, generation_request(version=version, max_tokens=16, **fields), listener)
    result = listener.result(20)
    assert result.status == "completed", result.error
    return result.choices[0].text


# 1. One immutable name and folder per version; never the same folder with new bytes, never in place.


def test_each_content_has_a_folder_of_its_own(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path]
) -> None:
    engine.load(V1.version, adapters[V1.version])
    engine.load(V2.version, adapters[V2.version])
    folders = {name: folder for name, (folder, _) in servers[0].adapters.items()}
    assert folders.keys() == {V1.version, V2.version}
    assert len(set(folders.values())) == 2
    engine.unload(V1.version)
    wait_until(lambda: not folders[V1.version].exists())
    engine.load(V1.version, adapters[V2.version])
    assert servers[0].adapters[V1.version][0] != folders[V1.version]


def test_versions_are_never_loaded_in_place(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path]
) -> None:
    engine.load(V1.version, adapters[V1.version])
    servers[0].restart()
    wait_until(lambda: servers[0].calls.count(f"load {V1.version}") == 2)
    assert not any(body.get("load_inplace") for body in servers[0].load_bodies)


# 2. Two versions fit into one batch: `--max-loras` of at least 2.


def test_server_with_room_for_one_version_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    assert "--max-loras 3" in start_error(tiny_model, tmp_path, max_loras=1)


# 3. Load everywhere, see it listed, test it by name, serve it; drain our own count, unload, delete the folder.


def test_version_is_tested_by_name_on_every_server_before_it_serves(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path]
) -> None:
    engine.load(V1.version, adapters[V1.version])
    for server in servers:
        of_version = [call for call in server.calls if V1.version in call]
        assert of_version[0] == f"load {V1.version}"
        assert of_version[1] == f"complete {V1.version}"
        assert V1.version in server.adapters


def test_folder_outlives_the_last_request_and_the_unloading(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path]
) -> None:
    engine.load(V1.version, adapters[V1.version])
    folder = servers[0].adapters[V1.version][0]
    listener = RecordingListener()
    submit(engine, generation_request(version=V1.version, max_tokens=300), listener)
    assert listener.started.wait(20)
    engine.unload(V1.version)
    for _ in range(5):
        assert folder.is_dir()
        assert all(V1.version in server.adapters for server in servers)
        time.sleep(0.02)
    assert not listener.ended.is_set()
    assert listener.result(20).status == "completed"
    wait_until(lambda: not folder.exists())
    assert all(f"unload {V1.version}" in server.calls for server in servers)


def test_running_requests_survive_an_eviction(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path]
) -> None:
    """vLLM reads an evicted adapter from its folder again."""
    engine.load(V1.version, adapters[V1.version])
    before = answer(engine, V1.version)
    for server in servers:
        server.evict(V1.version)
    assert {answer(engine, V1.version) for _ in range(4)} == {before}


# 4. The version before stays loaded, so that a rollback moves a pointer.


def test_rollback_loads_nothing(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path]
) -> None:
    registry = VersionRegistry(LINE, BASE, engine.unload, keep_previous=True)
    for seq, ref, previous in ((1, V1, None), (2, V2, V1)):
        engine.load(ref.version, adapters[ref.version])
        registry.add(ref)
        registry.activate(rollout_record(seq, ref, previous=previous))
    loads = [call for call in servers[0].calls if call.startswith("load")]
    assert registry.retain(V1.version)
    registry.activate(rollout_record(3, V1, previous=V2))
    assert answer(engine, registry.acquire(LINE, None))
    assert [call for call in servers[0].calls if call.startswith("load")] == loads


# 5. A restarted server has forgotten all versions: it gets them again before the next request.


def test_restarted_server_has_all_versions_before_it_gets_requests(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path]
) -> None:
    expected = {}
    for ref in (V1, V2):
        engine.load(ref.version, adapters[ref.version])
        expected[ref.version] = answer(engine, ref.version)
    for server in servers:
        server.restart()
    for _ in range(3):
        for version, text in expected.items():
            assert answer(engine, version) == text
    for server in servers:
        after = server.calls[server.calls.index("forget") :]
        assert {f"load {V1.version}", f"load {V2.version}"} <= set(after)


def test_server_that_was_away_has_all_versions_before_it_gets_requests(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path]
) -> None:
    engine.load(V1.version, adapters[V1.version])
    expected = answer(engine, V1.version)
    servers[0].kill()
    assert {answer(engine, V1.version) for _ in range(4)} == {expected}
    engine.load(V2.version, adapters[V2.version])
    servers[0].calls.clear()
    servers[0].start()
    wait_until(lambda: set(servers[0].adapters) == {V1.version, V2.version})
    servers[1].kill()
    assert answer(engine, V1.version) == expected
    assert answer(engine, V2.version)
    assert servers[0].calls[:2] == [f"complete {servers[0].base}", f"load {V1.version}"]


# 6. One API process per server, and no load balancer between: what was loaded must be listed.


def test_server_that_does_not_list_what_it_loaded_is_refused(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path]
) -> None:
    for server in servers:
        server.hides_adapters = True
    with pytest.raises(Retryable, match="--api-server-count 1"):
        engine.load(V1.version, adapters[V1.version])
    assert engine.versions() == (BASE.version,)


# 7. `--max-lora-rank` is our rank: a version that exceeds it is refused, with the remedy.


def test_version_with_too_high_a_rank_is_refused_until_a_restart(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path], tmp_path: Path
) -> None:
    for server in servers:
        server.refuse_load[V1.version] = (500, "LoRA rank 4 is greater than max_lora_rank 2.")
    with pytest.raises(Retryable, match="--max-lora-rank"):
        engine.load(V1.version, adapters[V1.version])
    assert [path for path in (tmp_path / "adapters").iterdir() if not path.name.startswith(".")] == []
    assert answer(engine, BASE.version)
    for server in servers:
        server.refuse_load.clear()
    engine.load(V1.version, adapters[V1.version])
    assert answer(engine, V1.version)


# 8. No release of vLLM that mixes up the versions of running requests.


@pytest.mark.parametrize("version", ["0.22.1", "0.24.0", "0.31.9+cu129"])
def test_release_that_mixes_up_versions_is_refused(tiny_model: Path, tmp_path: Path, version: str) -> None:
    error = start_error(tiny_model, tmp_path, version=version)
    assert version in error
    assert "0.32.0" in error


@pytest.mark.parametrize("version", ["0.32.0", "0.33.1+cpu", "1.0.0rc1", "dev"])
def test_other_releases_are_accepted(tiny_model: Path, tmp_path: Path, version: str) -> None:
    fake = FakeVllm(str(tiny_model), version=version)
    engine = make_vllm_engine([fake], tiny_model, tmp_path / "adapters")
    try:
        engine.start().result(20)
    finally:
        engine.stop(1)
        fake.close()


def test_versions_do_not_mix_while_they_are_swapped(
    servers: list[FakeVllm], engine: VllmEngine, adapters: dict[str, Path]
) -> None:
    """I8, I9: twenty swaps under load; every answer comes whole from the version that it names."""
    engine.load(V1.version, adapters[V1.version])
    engine.load(V2.version, adapters[V2.version])
    expected = {ref.version: answer(engine, ref.version) for ref in (V1, V2)}
    assert len(set(expected.values())) == 2
    stable, other = V1.version, V2.version
    listeners: list[tuple[str, RecordingListener]] = []
    for _ in range(20):
        engine.unload(other)
        for _ in range(5):
            listeners.append((stable, RecordingListener()))
            submit(engine, generation_request(version=stable, max_tokens=16), listeners[-1][1])
        engine.load(other, adapters[other])
        stable, other = other, stable
    for version, listener in listeners:
        result = listener.result(20)
        assert (result.status, result.choices[0].text) == ("completed", expected[version])
