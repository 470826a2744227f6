"""From rollout records to what is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import Refusal, VersionSwap
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.errors import BadArtifact, UnknownVersion
from shared.versions import VersionRef
from tests.inference_factories import BASE, LINE, reference, rollout


class Scene:
    """A line with a store, a loader that remembers, and nothing real behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LocalArtifactStore(folder / "store")
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.unfit: set[str] = set()
        self.told: tuple[Refusal, ...] = ()
        self.serving = VersionRegistry(LINE, BASE, self.unloaded.append)
        self.takeover = VersionSwap(self.serving, self.store, self, self.tell)

    def tell(self, refusals: tuple[Refusal, ...]) -> None:
        self.told = refusals

    def load(self, version: str, folder: Path) -> None:
        if version in self.unfit:
            raise BadArtifact(f"{version} was made for another base")
        assert (folder / "weights.txt").exists()
        self.loaded.append(version)

    def version(self, number: int) -> VersionRef:
        made = self.folder / f"v{number}"
        made.mkdir()
        (made / "weights.txt").write_text(f"version {number}")
        _, digest = self.store.put(made)
        return reference(LINE, number, digest)

    def tamper(self, ref: VersionRef) -> None:
        (self.folder / "store" / ref.digest / "weights.txt").write_text("altered")

    def stable(self) -> str:
        return self.serving.snapshot().stable.version


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_without_a_record_the_base_serves(scene: Scene) -> None:
    assert scene.serving.admit(LINE, None) == BASE.version


def test_a_promoted_version_is_loaded_and_then_serves(scene: Scene) -> None:
    v1 = scene.version(1)
    scene.takeover.apply(rollout(1, v1))
    assert scene.loaded == [v1.version]
    assert scene.serving.admit(LINE, None) == v1.version
    assert scene.told == ()


def test_an_older_record_after_a_newer_one_is_ignored(scene: Scene) -> None:
    """I7."""
    v1, v2 = scene.version(1), scene.version(2)
    scene.takeover.apply(rollout(5, v2))
    for seq in (5, 4, 1):
        scene.takeover.apply(rollout(seq, v1))
    assert scene.stable() == v2.version
    assert scene.loaded == [v2.version]


def test_an_older_record_after_a_refused_newer_one_is_ignored_too(scene: Scene) -> None:
    """I7."""
    v1, v2, v3 = scene.version(1), scene.version(2), scene.version(3)
    scene.takeover.apply(rollout(1, v1))
    scene.tamper(v3)
    scene.takeover.apply(rollout(3, v3))
    scene.takeover.apply(rollout(2, v2))
    assert scene.stable() == v1.version


def test_records_of_other_lines_are_ignored(scene: Scene) -> None:
    other = reference("poet", 1)
    scene.takeover.apply(rollout(9, other, line="poet"))
    assert scene.stable() == BASE.version
    assert scene.takeover.newer(rollout(1, BASE))


def test_a_tampered_artifact_is_refused_and_a_later_record_works_again(scene: Scene) -> None:
    v1, v2, v3 = scene.version(1), scene.version(2), scene.version(3)
    scene.takeover.apply(rollout(1, v1))
    scene.tamper(v2)
    scene.takeover.apply(rollout(2, v2))
    assert scene.stable() == v1.version
    assert [(r.version, r.seq, r.code) for r in scene.told] == [(v2.version, 2, "bad_artifact")]
    assert v2.version not in scene.loaded
    scene.takeover.apply(rollout(3, v3))
    assert scene.stable() == v3.version
    assert scene.told == ()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (reference(LINE, None, "ab" * 32), "another base than the one loaded"),
        (reference(LINE, 1, kind="full"), "full model"),
        (reference("poet", 1), "not the name"),
        (reference(LINE, 1, version="assistant@v1-00000000"), "not the name"),
        (reference(LINE, 1, uri="file:///etc"), "does not name the digest"),
    ],
)
def test_what_cannot_be_served_here_is_refused(scene: Scene, wrong: VersionRef, why: str) -> None:
    scene.takeover.apply(rollout(1, wrong))
    assert why in scene.told[0].message
    assert scene.stable() == BASE.version


def test_an_adapter_that_does_not_fit_changes_nothing(scene: Scene) -> None:
    v1 = scene.version(1)
    scene.unfit.add(v1.version)
    scene.takeover.apply(rollout(1, v1))
    assert scene.stable() == BASE.version
    with pytest.raises(UnknownVersion):
        scene.serving.admit(v1.version, None)


def test_an_artifact_that_is_not_there_yet_is_tried_again(scene: Scene) -> None:
    later = Scene(scene.folder / "elsewhere") if (scene.folder / "elsewhere").mkdir() is None else scene
    v1 = later.version(1)
    scene.takeover.apply(rollout(1, v1))
    assert scene.told[0].code == "not_yet"
    scene.store.put(later.folder / "v1")
    scene.takeover.again()
    assert scene.stable() == v1.version
    assert scene.told == ()


def test_a_bad_artifact_is_not_tried_again_and_again(scene: Scene) -> None:
    v1 = scene.version(1)
    scene.unfit.add(v1.version)
    scene.takeover.apply(rollout(1, v1))
    scene.unfit.clear()
    scene.takeover.again()
    assert scene.loaded == []


def test_the_old_version_is_unloaded_when_its_last_request_ends(scene: Scene) -> None:
    v1, v2 = scene.version(1), scene.version(2)
    scene.takeover.apply(rollout(1, v1))
    first, second = scene.serving.admit(LINE, None), scene.serving.admit(LINE, None)
    scene.takeover.apply(rollout(2, v2))
    assert scene.unloaded == []
    scene.serving.release(first)
    assert scene.unloaded == []
    scene.serving.release(second)
    assert scene.unloaded == [v1.version]
    assert scene.serving.in_memory() == {BASE.version: 0, v2.version: 0}


def test_a_draining_version_takes_no_new_requests(scene: Scene) -> None:
    v1, v2 = scene.version(1), scene.version(2)
    scene.takeover.apply(rollout(1, v1))
    scene.serving.admit(LINE, None)
    scene.takeover.apply(rollout(2, v2))
    with pytest.raises(UnknownVersion, match="served are: assistant, "):
        scene.serving.admit(v1.version, None)


def test_a_rollback_to_a_draining_version_loads_nothing(scene: Scene) -> None:
    v1, v2 = scene.version(1), scene.version(2)
    scene.takeover.apply(rollout(1, v1))
    pinned = scene.serving.admit(LINE, None)
    scene.takeover.apply(rollout(2, v2))
    scene.takeover.apply(rollout(3, v1))
    scene.serving.release(pinned)
    assert scene.stable() == v1.version
    assert scene.loaded == [v1.version, v2.version]
    assert scene.unloaded == [v2.version]


def test_the_base_is_never_unloaded(scene: Scene) -> None:
    scene.takeover.apply(rollout(1, scene.version(1)))
    scene.takeover.apply(rollout(2, BASE))
    assert BASE.version not in scene.unloaded
    assert scene.serving.admit(LINE, None) == BASE.version


def test_a_canary_is_loaded_and_serves_its_share_only(scene: Scene) -> None:
    v1, v2 = scene.version(1), scene.version(2)
    scene.takeover.apply(rollout(1, v1, canary=v2, share=0.5))
    seen = {scene.serving.admit(LINE, f"u_{n}") for n in range(60)}
    assert seen == {v1.version, v2.version}
    assert scene.serving.admit(LINE, None) == v1.version
    assert scene.serving.admit(v2.version, None) == v2.version


def test_a_canary_of_no_share_is_not_loaded(scene: Scene) -> None:
    v1, v2 = scene.version(1), scene.version(2)
    scene.takeover.apply(rollout(1, v1, canary=v2, share=0.0))
    assert scene.loaded == [v1.version]


def test_a_bad_canary_leaves_the_stable_to_everybody(scene: Scene) -> None:
    v1, v2 = scene.version(1), scene.version(2)
    scene.tamper(v2)
    scene.takeover.apply(rollout(1, v1, canary=v2, share=1.0))
    assert {scene.serving.admit(LINE, f"u_{n}") for n in range(20)} == {v1.version}
    assert scene.told[0].version == v2.version


def test_with_a_bad_stable_not_even_the_canary_is_loaded(scene: Scene) -> None:
    v1, v2 = scene.version(1), scene.version(2)
    scene.tamper(v1)
    scene.takeover.apply(rollout(1, v1, canary=v2, share=1.0))
    assert scene.loaded == []
    assert scene.stable() == BASE.version


def test_a_replica_that_starts_beside_a_bad_stable_serves_the_one_before(scene: Scene) -> None:
    v1, v2 = scene.version(1), scene.version(2)
    scene.tamper(v2)
    scene.takeover.apply(rollout(2, v2, previous=v1))
    assert scene.stable() == v1.version
    assert scene.told[0].version == v2.version
