"""Contract of `ArtifactStore`: a local folder, and fsspec's memory and S3 file systems."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shared.adapters.artifact_manifest import MANIFEST
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.artifacts_remote import OPTIONS, RemoteArtifactStore, open_remote
from shared.errors import BadArtifact, NotYet, StoreUnavailable
from shared.ports import ArtifactStore, Stored
from tests.s3 import own_s3

FAR = 2**53
"""Later than any time in these tests, in milliseconds."""


@dataclass
class World:
    """A store: `open()` returns it as a new process sees it; `alter` and `drop` change a file behind its back."""

    open: Callable[[], ArtifactStore]
    alter: Callable[[str, bytes], None]
    drop: Callable[[str], None]


def local(folder: Path, _: str) -> World:
    root = folder / "store"
    return World(
        lambda: LocalArtifactStore(root),
        lambda name, data: write(root / name, data),
        lambda name: (root / name).unlink(),
    )


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Memory(MemoryFileSystem):
    """Memory file system whose readers do not share one file position, unlike fsspec's own."""

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **more: Any) -> Any:
        return (
            io.BytesIO(self.cat_file(path)) if mode == "rb" else super()._open(path, mode, *arguments, **more)
        )


@cache
def s3_files() -> Any:
    """Return one client for all tests, because creating one takes longer than a test."""
    return fsspec.filesystem("s3", **OPTIONS["s3"])


def remote(url: str, folder: Path) -> World:
    protocol, _, root = url.partition("://")
    files = s3_files()
    if protocol == "memory":
        files, root = Memory(), f"/{root}"
    caches = iter(range(1000))
    return World(
        lambda: RemoteArtifactStore(files, root, folder / f"cache-{next(caches)}"),
        lambda name, data: files.pipe_file(f"{root}/{name}", data),
        lambda name: files.rm_file(f"{root}/{name}"),
    )


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with own_s3() as url:
        yield url


@pytest.fixture(params=["local", "memory", "s3"])
def world(request: pytest.FixtureRequest, tmp_path: Path, fresh: str) -> World:
    if request.param == "local":
        return local(tmp_path, fresh)
    if request.param == "s3":
        return remote(f"{request.getfixturevalue('s3')}/{fresh}", tmp_path)
    return remote(f"memory://{fresh}", tmp_path)


def made(folder: Path, weights: bytes = b"weights") -> Path:
    """Write an artifact folder like a run's, with a file in a subfolder."""
    write(folder / "adapter_model.safetensors", weights)
    write(folder / "tokenizer" / "vocab.json", b"{}")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def test_artifact_put_by_one_process_is_fetched_by_another(world: World, tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    uri, digest = world.open().put(folder)
    assert uri == f"artifact:{digest}"
    assert content(world.open().fetch(uri, digest)) == content(folder)


def test_equal_content_is_stored_once_under_one_name(world: World, tmp_path: Path) -> None:
    store = world.open()
    assert store.put(made(tmp_path / "a")) == world.open().put(made(tmp_path / "b"))
    assert len(store.stored()) == 1
    assert store.put(made(tmp_path / "c", b"other"))[1] in {one.digest for one in store.stored()}
    assert len(store.stored()) == 2


def test_unknown_artifact_raises_not_yet(world: World) -> None:
    with pytest.raises(NotYet):
        world.open().fetch("artifact:" + "0" * 64, "0" * 64)
    assert world.open().stored() == []


def test_uri_of_another_digest_is_refused(world: World, tmp_path: Path) -> None:
    _, digest = world.open().put(made(tmp_path / "run"))
    with pytest.raises(BadArtifact):
        world.open().fetch("artifact:" + "0" * 64, digest)


def test_artifact_without_manifest_does_not_exist(world: World, tmp_path: Path) -> None:
    uri, digest = world.open().put(made(tmp_path / "run"))
    world.drop(f"{digest}/{MANIFEST}")
    assert world.open().stored() == []
    with pytest.raises(NotYet):
        world.open().fetch(uri, digest)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", MANIFEST])
def test_altered_artifact_is_refused(world: World, tmp_path: Path, name: str) -> None:
    uri, digest = world.open().put(made(tmp_path / "run"))
    world.alter(f"{digest}/{name}", b'{"files": {}}')
    with pytest.raises(BadArtifact):
        world.open().fetch(uri, digest)


def test_missing_file_is_detected(world: World, tmp_path: Path) -> None:
    uri, digest = world.open().put(made(tmp_path / "run"))
    world.drop(f"{digest}/tokenizer/vocab.json")
    with pytest.raises(BadArtifact, match=r"vocab\.json"):
        world.open().fetch(uri, digest)


@pytest.mark.parametrize("name", ["weights.bin", "code.py", ".hidden"])
def test_code_and_hidden_files_are_never_stored(world: World, tmp_path: Path, name: str) -> None:
    folder = made(tmp_path / "run")
    (folder / name).write_bytes(b"x")
    with pytest.raises(BadArtifact):
        world.open().put(folder)
    assert world.open().stored() == []


def test_concurrent_writers_leave_one_complete_artifact(world: World, tmp_path: Path) -> None:
    folder = made(tmp_path / "run", os.urandom(50_000))
    with ThreadPoolExecutor(4) as pool:
        (one,) = set(pool.map(lambda _: world.open().put(folder), range(4)))
    assert content(world.open().fetch(*one)) == content(folder)
    assert world.open().sweep(FAR) == 0, "nothing is left to sweep"


def test_discarded_artifact_can_be_put_again(world: World, tmp_path: Path) -> None:
    store, folder = world.open(), made(tmp_path / "run")
    uri, digest = store.put(folder)
    assert store.discard(digest) is True
    assert (store.stored(), store.discard(digest)) == ([], False)
    with pytest.raises(NotYet):
        world.open().fetch(uri, digest)
    store.put(folder)
    assert content(world.open().fetch(uri, digest)) == content(folder)


def test_discard_can_be_cancelled_at_the_last_moment(world: World, tmp_path: Path) -> None:
    store = world.open()
    uri, digest = store.put(made(tmp_path / "run"))
    seen: list[Stored] = []

    def spare(one: Stored) -> bool:
        seen.append(one)
        return True

    assert store.discard(digest, unless=spare) is False
    assert [(one.digest, one.put_ms > 0) for one in seen] == [(digest, True)]
    assert content(world.open().fetch(uri, digest)) == content(tmp_path / "run")


def test_held_artifact_stays_complete_until_released(world: World, tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    uri, digest = world.open().put(folder)
    with world.open().held(uri, digest) as there:
        world.open().discard(digest)
        assert content(there) == content(folder)


def test_reader_during_collection_gets_everything_or_nothing(world: World, tmp_path: Path) -> None:
    """Concurrent readers and collectors: a reader gets the complete artifact or `NotYet`, never a part."""
    folder = made(tmp_path / "run", os.urandom(20_000))
    uri, digest = world.open().put(folder)
    whole, stop = content(folder), threading.Event()

    def read() -> list[str]:
        seen = []
        while not stop.is_set():
            try:
                with world.open().held(uri, digest) as there:
                    seen.append("whole" if content(there) == whole else "part")
            except NotYet:
                seen.append("away")
        return seen

    def collect() -> None:
        for _ in range(4):
            world.open().discard(digest)
            world.open().put(folder)
        stop.set()

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        pool.submit(collect).result()
        seen = [one for reader in readers for one in reader.result()]
    assert "whole" in seen
    assert "part" not in seen
    assert content(world.open().fetch(uri, digest)) == whole, "the last thing done was to put it"


def test_put_during_collection_never_fails_or_leaves_a_part(world: World, tmp_path: Path) -> None:
    folder = made(tmp_path / "run", os.urandom(20_000))

    def collect() -> None:
        while not stop.is_set():
            for one in world.open().stored():
                world.open().discard(one.digest)

    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        collecting = pool.submit(collect)
        for _ in range(4):
            world.open().put(folder)
        stop.set()
        collecting.result()
    uri, digest = world.open().put(folder)
    assert content(world.open().fetch(uri, digest)) == content(folder)


def test_old_leftovers_of_interrupted_writers_are_swept(world: World, tmp_path: Path) -> None:
    store = world.open()
    uri, digest = store.put(made(tmp_path / "run"))
    world.alter(f"{'ab' * 32}/adapter_model.safetensors", b"half")
    assert store.sweep(0) == 0
    assert store.sweep(FAR) == 1
    assert store.sweep(FAR) == 0
    assert content(store.fetch(uri, digest)) == content(tmp_path / "run")


# --- of those behind a URL --------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "s3"])
def away(request: pytest.FixtureRequest, tmp_path: Path, fresh: str) -> World:
    if request.param == "s3":
        return remote(f"{request.getfixturevalue('s3')}/{fresh}", tmp_path)
    return remote(f"memory://{fresh}", tmp_path)


def test_fetched_artifact_is_read_from_the_cache(away: World, tmp_path: Path) -> None:
    uri, digest = away.open().put(made(tmp_path / "run"))
    reader = away.open()
    reader.fetch(uri, digest)
    away.drop(f"{digest}/adapter_model.safetensors")
    assert content(reader.fetch(uri, digest)) == content(tmp_path / "run")


def test_altered_cache_entry_is_fetched_again(away: World, tmp_path: Path) -> None:
    uri, digest = away.open().put(made(tmp_path / "run"))
    reader = away.open()
    write(reader.fetch(uri, digest) / "adapter_model.safetensors", b"altered")
    assert content(reader.fetch(uri, digest)) == content(tmp_path / "run")


def test_collector_yields_to_live_claims_and_ignores_stale_ones(
    away: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = away.open()
    _, digest = store.put(made(tmp_path / "run"))
    away.alter(f"claims/{digest}/somebody", b"")
    assert store.discard(digest) is False
    monkeypatch.setattr("shared.adapters.artifacts_remote.STALE_S", 0.0)
    assert store.discard(digest) is True


def test_put_waits_for_an_earlier_collector_within_bounds(
    away: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "run")
    store = away.open()
    uri, digest = store.put(folder)
    away.alter(f"going/{digest}/somebody", b"")
    monkeypatch.setattr("shared.adapters.artifacts_remote.SLOW_S", 0.2)
    with pytest.raises(StoreUnavailable, match="being removed"):
        store.put(folder)
    away.drop(f"going/{digest}/somebody")
    assert store.put(folder) == (uri, digest)


def test_altered_artifact_is_not_cached(away: World, tmp_path: Path) -> None:
    uri, digest = away.open().put(made(tmp_path / "run"))
    away.alter(f"{digest}/adapter_model.safetensors", b"altered")
    reader = away.open()
    with pytest.raises(BadArtifact):
        reader.fetch(uri, digest)
    assert reader._cache.stored() == []  # type: ignore[attr-defined]


def test_unreachable_store_raises_store_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_remote("memory://gone", tmp_path / "cache")

    def refused(*_: object, **__: object) -> bytes:
        raise ConnectionResetError("connection reset")

    monkeypatch.setattr(store._files, "pipe_file", refused)
    with pytest.raises(StoreUnavailable, match="connection reset"):
        store.put(made(tmp_path / "run"))
