"""From rollout records to the versions that are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import Refusal, VersionSwap
from shared.adapters.artifact_manifest import LINEAGE_FILE
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.errors import UnknownVersion
from shared.versions import VersionRef
from tests.inference_factories import BASE, LINE, RecordingEngine, rollout_record, version_ref


class Setup:
    """A line with a real artifact store and an engine that keeps the history of its loads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LocalArtifactStore(folder / "store")
        self.engine = RecordingEngine(BASE.version)
        self.refusals: tuple[Refusal, ...] = ()
        self.registry = VersionRegistry(LINE, BASE, self.engine.unload)
        self.swap = VersionSwap(
            self.registry, self.store, self.engine, self.set_refusals, {"enable_thinking": False}
        )

    def set_refusals(self, refusals: tuple[Refusal, ...]) -> None:
        self.refusals = refusals

    def put_version(self, number: int, lineage: str | None = None) -> VersionRef:
        """Store an artifact and return the reference to it."""
        source = self.folder / f"v{number}"
        source.mkdir()
        (source / "weights.txt").write_text(f"version {number}")
        if lineage is not None:
            (source / LINEAGE_FILE).write_text(lineage)
        _, digest = self.store.put(source)
        return version_ref(LINE, number, digest)

    def tamper(self, ref: VersionRef) -> None:
        (self.folder / "store" / ref.digest / "weights.txt").write_text("altered")

    def stable(self) -> str:
        return self.registry.state().stable.version


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_base_is_served_without_a_rollout_record(setup: Setup) -> None:
    assert setup.registry.acquire(LINE, None) == BASE.version


def test_version_is_served_with_the_prompts_that_it_was_trained_with(setup: Setup) -> None:
    v1 = setup.put_version(1, '{"chat_template_kwargs": {"enable_thinking": false}}')
    setup.swap.apply(rollout_record(1, v1))
    assert (setup.stable(), setup.refusals) == (v1.version, ())


@pytest.mark.parametrize("lineage", ["{}", '{"chat_template_kwargs": {"enable_thinking": true}}', "[]", "{"])
def test_version_trained_with_other_prompts_is_refused(setup: Setup, lineage: str) -> None:
    v1, v2 = setup.put_version(1), setup.put_version(2, lineage)
    setup.swap.apply(rollout_record(1, v1))
    setup.swap.apply(rollout_record(2, v2))
    assert setup.stable() == v1.version
    ((code, message),) = [(one.code, one.message) for one in setup.refusals]
    assert code == "bad_artifact"
    assert "LOOPWRIGHT_CHAT_TEMPLATE_KWARGS" in message or "cannot be read" in message
    assert v2.version not in setup.engine.loads


def test_promoted_version_is_loaded_and_served(setup: Setup) -> None:
    v1 = setup.put_version(1)
    setup.swap.apply(rollout_record(1, v1))
    assert setup.engine.loads == [v1.version]
    assert "weights.txt" in setup.engine.loaded_files[v1.version]
    assert setup.registry.acquire(LINE, None) == v1.version
    assert setup.refusals == ()


def test_older_record_after_a_newer_one_is_ignored(setup: Setup) -> None:
    """I7."""
    v1, v2 = setup.put_version(1), setup.put_version(2)
    setup.swap.apply(rollout_record(5, v2))
    for seq in (5, 4, 1):
        setup.swap.apply(rollout_record(seq, v1))
    assert setup.stable() == v2.version
    assert setup.engine.loads == [v2.version]


def test_older_record_after_a_refused_newer_one_is_ignored(setup: Setup) -> None:
    """I7."""
    v1, v2, v3 = setup.put_version(1), setup.put_version(2), setup.put_version(3)
    setup.swap.apply(rollout_record(1, v1))
    setup.tamper(v3)
    setup.swap.apply(rollout_record(3, v3))
    setup.swap.apply(rollout_record(2, v2))
    assert setup.stable() == v1.version


def test_records_of_other_lines_are_ignored(setup: Setup) -> None:
    other = version_ref("poet", 1)
    setup.swap.apply(rollout_record(9, other, line="poet"))
    assert setup.stable() == BASE.version
    assert setup.swap.is_newer(rollout_record(1, BASE))


def test_tampered_artifact_is_refused_and_a_later_record_applied(setup: Setup) -> None:
    v1, v2, v3 = setup.put_version(1), setup.put_version(2), setup.put_version(3)
    setup.swap.apply(rollout_record(1, v1))
    setup.tamper(v2)
    setup.swap.apply(rollout_record(2, v2))
    assert setup.stable() == v1.version
    assert [(r.version, r.seq, r.code) for r in setup.refusals] == [(v2.version, 2, "bad_artifact")]
    assert v2.version not in setup.engine.loads
    setup.swap.apply(rollout_record(3, v3))
    assert setup.stable() == v3.version
    assert setup.refusals == ()


@pytest.mark.parametrize(
    ("unservable", "reason"),
    [
        (version_ref(LINE, None, "ab" * 32), "another base than the one loaded"),
        (version_ref(LINE, 1, kind="full"), "full model"),
        (version_ref("poet", 1), "does not match its line and digest"),
        (version_ref(LINE, 1, version="assistant@v1-00000000"), "does not match its line and digest"),
        (version_ref(LINE, 1, uri="file:///etc"), "does not name the digest"),
    ],
)
def test_unservable_version_is_refused(setup: Setup, unservable: VersionRef, reason: str) -> None:
    setup.swap.apply(rollout_record(1, unservable))
    assert reason in setup.refusals[0].message
    assert setup.stable() == BASE.version


def test_adapter_that_does_not_fit_changes_nothing(setup: Setup) -> None:
    v1 = setup.put_version(1)
    setup.engine.unusable.add(v1.version)
    setup.swap.apply(rollout_record(1, v1))
    assert setup.stable() == BASE.version
    with pytest.raises(UnknownVersion):
        setup.registry.acquire(v1.version, None)


def test_missing_artifact_is_retried(setup: Setup) -> None:
    elsewhere = setup.folder / "elsewhere"
    elsewhere.mkdir()
    v1 = Setup(elsewhere).put_version(1)
    setup.swap.apply(rollout_record(1, v1))
    assert setup.refusals[0].code == "not_yet"
    setup.store.put(elsewhere / "v1")
    setup.swap.retry()
    assert setup.stable() == v1.version
    assert setup.refusals == ()


def test_bad_artifact_is_not_retried(setup: Setup) -> None:
    v1 = setup.put_version(1)
    setup.engine.unusable.add(v1.version)
    setup.swap.apply(rollout_record(1, v1))
    setup.engine.unusable.clear()
    setup.swap.retry()
    assert setup.engine.loads == []


def test_old_version_is_unloaded_after_its_last_request(setup: Setup) -> None:
    v1, v2 = setup.put_version(1), setup.put_version(2)
    setup.swap.apply(rollout_record(1, v1))
    first, second = setup.registry.acquire(LINE, None), setup.registry.acquire(LINE, None)
    setup.swap.apply(rollout_record(2, v2))
    assert setup.engine.unloads == []
    setup.registry.release(first)
    assert setup.engine.unloads == []
    setup.registry.release(second)
    assert setup.engine.unloads == [v1.version]
    assert setup.registry.in_flight() == {BASE.version: 0, v2.version: 0}


def test_draining_version_accepts_no_new_requests(setup: Setup) -> None:
    v1, v2 = setup.put_version(1), setup.put_version(2)
    setup.swap.apply(rollout_record(1, v1))
    setup.registry.acquire(LINE, None)
    setup.swap.apply(rollout_record(2, v2))
    with pytest.raises(UnknownVersion, match="available models: assistant, "):
        setup.registry.acquire(v1.version, None)


def test_rollback_to_a_draining_version_loads_nothing(setup: Setup) -> None:
    v1, v2 = setup.put_version(1), setup.put_version(2)
    setup.swap.apply(rollout_record(1, v1))
    pinned = setup.registry.acquire(LINE, None)
    setup.swap.apply(rollout_record(2, v2))
    setup.swap.apply(rollout_record(3, v1))
    setup.registry.release(pinned)
    assert setup.stable() == v1.version
    assert setup.engine.loads == [v1.version, v2.version]
    assert setup.engine.unloads == [v2.version]


def test_base_is_never_unloaded(setup: Setup) -> None:
    setup.swap.apply(rollout_record(1, setup.put_version(1)))
    setup.swap.apply(rollout_record(2, BASE))
    assert BASE.version not in setup.engine.unloads
    assert setup.registry.acquire(LINE, None) == BASE.version


def test_canary_is_served_to_its_share_only(setup: Setup) -> None:
    v1, v2 = setup.put_version(1), setup.put_version(2)
    setup.swap.apply(rollout_record(1, v1, canary=v2, share=0.5))
    seen = {setup.registry.acquire(LINE, f"u_{n}") for n in range(60)}
    assert seen == {v1.version, v2.version}
    assert setup.registry.acquire(LINE, None) == v1.version
    assert setup.registry.acquire(v2.version, None) == v2.version


def test_canary_without_a_share_is_not_loaded(setup: Setup) -> None:
    v1, v2 = setup.put_version(1), setup.put_version(2)
    setup.swap.apply(rollout_record(1, v1, canary=v2, share=0.0))
    assert setup.engine.loads == [v1.version]


def test_without_its_bad_canary_the_stable_version_serves_all(setup: Setup) -> None:
    v1, v2 = setup.put_version(1), setup.put_version(2)
    setup.tamper(v2)
    setup.swap.apply(rollout_record(1, v1, canary=v2, share=1.0))
    assert {setup.registry.acquire(LINE, f"u_{n}") for n in range(20)} == {v1.version}
    assert setup.refusals[0].version == v2.version


def test_bad_stable_version_prevents_loading_the_canary(setup: Setup) -> None:
    v1, v2 = setup.put_version(1), setup.put_version(2)
    setup.tamper(v1)
    setup.swap.apply(rollout_record(1, v1, canary=v2, share=1.0))
    assert setup.engine.loads == []
    assert setup.stable() == BASE.version


def test_new_replica_serves_the_previous_version_if_stable_is_bad(setup: Setup) -> None:
    v1, v2 = setup.put_version(1), setup.put_version(2)
    setup.tamper(v2)
    setup.swap.apply(rollout_record(2, v2, previous=v1))
    assert setup.stable() == v1.version
    assert setup.refusals[0].version == v2.version
