"""Garbage collection of the artifact store: what is deleted, what is kept, and what is checked again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.trainer.commands.artifact_gc import artifacts_in_use
from services.trainer.service import Trainer
from shared.adapters.artifact_manifest import MANIFEST
from shared.cloudevents import cloudevent
from shared.commands import CollectGarbage, CommandResult
from shared.errors import StoreUnavailable
from shared.topics import MODEL_ROLLOUT, MODEL_VERSIONS, OPERATOR_COMMANDS, OPERATOR_RESULTS
from shared.versions import GateReport, ModelVersion, RolloutRecord, Verdict, VersionRef, version_name
from tests.trainer_factories import LINE, TrainerRig, run_steps

BASE = f"{LINE}@base-{'ab' * 4}"
AT = datetime(2026, 3, 4, tzinfo=UTC)
MONTH = timedelta(days=30)


class StoreRig:
    """A line with versions in its artifact store. Its trainer keeps the two newest."""

    def __init__(self, folder: Path) -> None:
        self.rig = TrainerRig(folder, lambda _: None)
        self.folder = folder
        self.trainer: Trainer = self.rig.trainer(artifact_keep=2)
        self.versions: list[VersionRef] = []
        self.seq = 0
        self.commands = 0

    def put(self, name: str, age: timedelta = MONTH) -> tuple[str, str]:
        folder = self.folder / "made" / name
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(name.encode() * 100)
        uri, digest = self.trainer.store.put(folder)
        at = self.rig.clock.now_ms() / 1000 - age.total_seconds()
        os.utime(self.path(digest) / MANIFEST, (at, at))
        return uri, digest

    def path(self, digest: str) -> Path:
        return self.folder / "artifacts" / digest

    def publish(self, verdict: Verdict, line: str = LINE) -> VersionRef:
        number = len(self.versions) + 1
        uri, digest = self.put(f"{line}-{number}")
        ref = VersionRef(version=version_name(line, number, digest), kind="lora", uri=uri, digest=digest)
        version = ModelVersion(
            line=line,
            ref=ref,
            number=number,
            base=BASE,
            base_model="tiny",
            run_id=f"run-{number}",
            gate=GateReport(verdict=verdict, gated_against=BASE),
            created_at=AT,
        )
        self.versions.append(ref)
        self.rig.log.append(
            cloudevent(MODEL_VERSIONS, ref.version, version, source="trainer", ce_id="x", at=AT, partition=0)
        )
        return ref

    def serve(self, stable: VersionRef, previous: VersionRef | None = None, line: str = LINE) -> None:
        self.seq += 1
        record = RolloutRecord(
            line=line,
            seq=self.seq,
            action="pin",
            stable=stable,
            previous=previous,
            reason="by a person",
            decided_at=AT,
        )
        self.rig.log.append(
            cloudevent(MODEL_ROLLOUT, line, record, source="rollout", ce_id="x", at=AT, partition=0)
        )

    def collect(self, *, dry_run: bool = False) -> CommandResult:
        self.commands += 1
        command = CollectGarbage(line=LINE, command_id=f"c{self.commands}", issued_at=AT, dry_run=dry_run)
        self.rig.log.append(
            cloudevent(OPERATOR_COMMANDS, LINE, command, source="console", ce_id="x", at=AT, partition=0)
        )
        run_steps(self.trainer)
        return CommandResult.from_json(self.rig.log.records(OPERATOR_RESULTS.name)[-1].value)

    def stored(self) -> list[str]:
        """Return the versions whose artifacts are stored, and the digests of artifacts of no version."""
        names = {ref.digest: ref.version for ref in self.versions}
        return [names.get(one.digest, one.digest) for one in self.trainer.store.stored()]


@pytest.fixture
def store(tmp_path: Path) -> StoreRig:
    return StoreRig(tmp_path)


def test_old_unused_versions_are_deleted_and_named(store: StoreRig) -> None:
    refs = [store.publish("failed") for _ in range(4)]
    store.serve(VersionRef(version=BASE, kind="base", digest="ab" * 32))
    result = store.collect()
    assert result.status == "done"
    assert "2 of 4 artifacts deleted" in result.message
    assert refs[0].version in result.message and "2 (newest)" in result.message
    assert sorted(store.stored()) == sorted(ref.version for ref in refs[2:])
    assert "0 of 2 artifacts deleted" in store.collect().message


def test_dry_run_names_artifacts_and_deletes_nothing(store: StoreRig) -> None:
    refs = [store.publish("failed") for _ in range(3)]
    assert (
        f"1 of 3 artifacts would be deleted, 0.0 MB: {refs[0].version}" in store.collect(dry_run=True).message
    )
    assert len(store.stored()) == 3


def test_stable_previous_and_pinned_versions_stay(store: StoreRig) -> None:
    first, second, *_ = [store.publish("failed") for _ in range(6)]
    store.serve(stable=first, previous=second)
    store.collect()
    assert {first.version, second.version} <= set(store.stored())
    assert len(store.stored()) == 4


def test_candidate_newer_than_stable_stays(store: StoreRig) -> None:
    old, stable = store.publish("passed"), store.publish("passed")
    candidate = store.publish("passed")
    for _ in range(3):
        store.publish("failed")
    store.serve(stable)
    store.collect()
    assert candidate.version in store.stored()
    assert old.version not in store.stored()


def test_version_compared_with_the_open_run_stays(store: StoreRig) -> None:
    refs = [store.publish("failed") for _ in range(4)]
    versions, rollouts = store.trainer.versions.all_lines()
    in_use = artifacts_in_use(LINE, versions, rollouts, [refs[0]], 2)
    assert in_use[refs[0].digest] == "compared with the open run"
    assert refs[1].digest not in in_use


def test_versions_of_other_lines_stay(store: StoreRig) -> None:
    others = [store.publish("failed", line="other") for _ in range(4)]
    store.collect()
    assert sorted(store.stored()) == sorted(ref.version for ref in others)


def test_artifact_of_no_version_is_deleted_only_if_it_is_old(store: StoreRig) -> None:
    _, old = store.put("orphan")
    _, young = store.put("about-to-be-published", timedelta(hours=1))
    assert "1 of 2 artifacts would be deleted" in store.collect(dry_run=True).message
    result = store.collect()
    assert store.stored() == [young]
    assert f"{old[:8]} (of no version)" in result.message and "1 (put recently)" in result.message


def test_putting_an_artifact_again_refreshes_its_age(store: StoreRig) -> None:
    _, digest = store.put("orphan")
    store.trainer.store.put(store.folder / "made" / "orphan")
    store.collect()
    assert store.stored() == [digest]


def test_artifact_held_by_a_reader_stays_until_released(store: StoreRig) -> None:
    uri, digest = store.put("orphan")
    with store.trainer.store.held(uri, digest) as folder:
        assert "1 kept because they are in use again" in store.collect().message
        assert (folder / "adapter_model.safetensors").exists()
    store.collect()
    assert store.stored() == []


def test_version_pinned_during_collection_stays(store: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pin comes after the collector has selected the artifact, and before it deletes it."""
    refs = [store.publish("failed") for _ in range(4)]
    local = store.trainer.store
    lock = local._lock  # type: ignore[attr-defined]

    @contextmanager
    def pin_meanwhile(digest: str, kind: int) -> Iterator[object]:
        with lock(digest, kind) as locked:
            if digest == refs[0].digest:
                store.serve(refs[0])
            yield locked

    monkeypatch.setattr(local, "_lock", pin_meanwhile)
    store.collect()
    assert refs[0].version in store.stored()
    assert refs[1].version not in store.stored()


def test_unavailable_store_refuses_the_command(store: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> list[object]:
        raise StoreUnavailable("connection reset")

    monkeypatch.setattr(store.trainer.store, "stored", unavailable)
    result = store.collect()
    assert (result.status, "connection reset" in result.message) == ("refused", True)
