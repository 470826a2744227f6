"""Garbage collection of the artifact store: what goes, what never goes, and what is looked at once more."""

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


class Store:
    """A line with versions in its store; its trainer keeps the two newest."""

    def __init__(self, folder: Path) -> None:
        self.rig = TrainerRig(folder, lambda _: None)
        self.folder = folder
        self.trainer: Trainer = self.rig.trainer(artifact_keep=2)
        self.versions: list[VersionRef] = []
        self.seq = 0
        self.given = 0

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
        self.given += 1
        order = CollectGarbage(line=LINE, command_id=f"c{self.given}", issued_at=AT, dry_run=dry_run)
        self.rig.log.append(
            cloudevent(OPERATOR_COMMANDS, LINE, order, source="console", ce_id="x", at=AT, partition=0)
        )
        run_steps(self.trainer)
        return CommandResult.from_json(self.rig.log.records(OPERATOR_RESULTS.name)[-1].value)

    def there(self) -> list[str]:
        """Versions whose artifacts are there; of those that no version names, their digest."""
        names = {ref.digest: ref.version for ref in self.versions}
        return [names.get(one.digest, one.digest) for one in self.trainer.store.stored()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_old_versions_that_nothing_needs_go_and_are_named(store: Store) -> None:
    refs = [store.publish("failed") for _ in range(4)]
    store.serve(VersionRef(version=BASE, kind="base", digest="ab" * 32))
    result = store.collect()
    assert result.status == "done"
    assert "2 of 4 artifacts went" in result.message
    assert refs[0].version in result.message and "2 (newest)" in result.message
    assert sorted(store.there()) == sorted(ref.version for ref in refs[2:])
    assert "0 of 2 artifacts went" in store.collect().message


def test_a_dry_run_names_them_and_takes_nothing(store: Store) -> None:
    refs = [store.publish("failed") for _ in range(3)]
    assert f"1 of 3 artifacts would go, 0.0 MB: {refs[0].version}" in store.collect(dry_run=True).message
    assert len(store.there()) == 3


def test_what_serves_what_served_before_and_what_is_pinned_stay_however_old(store: Store) -> None:
    first, second, *_ = [store.publish("failed") for _ in range(6)]
    store.serve(stable=first, previous=second)
    store.collect()
    assert {first.version, second.version} <= set(store.there())
    assert len(store.there()) == 4


def test_a_candidate_that_may_still_take_over_stays(store: Store) -> None:
    old, stable = store.publish("passed"), store.publish("passed")
    candidate = store.publish("passed")
    for _ in range(3):
        store.publish("failed")
    store.serve(stable)
    store.collect()
    assert candidate.version in store.there()
    assert old.version not in store.there()


def test_the_version_that_an_open_run_is_compared_with_stays(store: Store) -> None:
    refs = [store.publish("failed") for _ in range(4)]
    versions, rollouts = store.trainer.versions.all_lines()
    kept = artifacts_in_use(LINE, versions, rollouts, [refs[0]], 2)
    assert kept[refs[0].digest] == "a run is compared with it"
    assert refs[1].digest not in kept


def test_another_lines_versions_are_left_to_their_trainer(store: Store) -> None:
    others = [store.publish("failed", line="other") for _ in range(4)]
    store.collect()
    assert sorted(store.there()) == sorted(ref.version for ref in others)


def test_what_no_version_names_goes_when_it_is_old_and_stays_while_it_is_young(store: Store) -> None:
    _, old = store.put("orphan")
    _, young = store.put("about-to-be-published", timedelta(hours=1))
    assert "1 of 2 artifacts would go" in store.collect(dry_run=True).message
    result = store.collect()
    assert store.there() == [young]
    assert f"{old[:8]}, which no version names" in result.message and "1 (put lately)" in result.message


def test_what_is_put_again_is_young_again(store: Store) -> None:
    _, digest = store.put("orphan")
    store.trainer.store.put(store.folder / "made" / "orphan")
    store.collect()
    assert store.there() == [digest]


def test_what_a_reader_holds_stays_until_it_is_let_go(store: Store) -> None:
    uri, digest = store.put("orphan")
    with store.trainer.store.held(uri, digest) as folder:
        assert "1 were held or needed again" in store.collect().message
        assert (folder / "adapter_model.safetensors").exists()
    store.collect()
    assert store.there() == []


def test_what_is_pinned_while_it_is_collected_is_not_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pin comes after the collector has looked, and before it takes."""
    refs = [store.publish("failed") for _ in range(4)]
    local = store.trainer.store
    lock = local._lock  # type: ignore[attr-defined]

    @contextmanager
    def pinned_meanwhile(digest: str, kind: int) -> Iterator[object]:
        with lock(digest, kind) as held:
            if digest == refs[0].digest:
                store.serve(refs[0])
            yield held

    monkeypatch.setattr(local, "_lock", pinned_meanwhile)
    store.collect()
    assert refs[0].version in store.there()
    assert refs[1].version not in store.there()


def test_a_store_that_is_away_refuses_the_order_and_does_not_end_the_trainer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> list[object]:
        raise StoreUnavailable("connection reset")

    monkeypatch.setattr(store.trainer.store, "stored", away)
    result = store.collect()
    assert (result.status, "connection reset" in result.message) == ("refused", True)
