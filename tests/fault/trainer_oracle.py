"""What must hold of a line whose one run was interrupted, however often: I5, I6, and that nothing was learned twice or
not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from services.trainer.dataset import snapshot
from services.trainer.dataset.snapshot import SNAPSHOT
from services.trainer.versions.model_card import ADAPTER_FILES
from shared.versions import ModelVersion


@dataclass
class Seen:
    """`datasets`: the digests of all snapshots that ever lay on the disk; `runs`: the folders of runs that ever did.
    `weights` by what they were published as, `uninterrupted` those of the same run that nobody disturbed."""

    versions: list[ModelVersion] = field(default_factory=list)
    datasets: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    weights: dict[str, str] = field(default_factory=dict)
    uninterrupted: str = ""
    dataset_again: str = ""
    """Of a snapshot that the uninterrupted run took by itself, from the same batches."""

    def look(self, runs: Path) -> None:
        """At what lies there now."""
        self.runs |= {folder.name for folder in runs.glob("*")}
        self.datasets |= {snapshot.read_ref(mark.parent).digest for mark in runs.glob(f"*/{SNAPSHOT}")}


def weights_of(folder: Path) -> str:
    """The digest of the weights in an adapter's or an artifact's folder."""
    return hashlib.sha256((folder / ADAPTER_FILES[0]).read_bytes()).hexdigest()


def complaints(seen: Seen) -> Iterator[str]:
    """What is wrong, each beginning with its name; none if all is well."""
    names = [version.ref.version for version in seen.versions]
    if len(names) != 1:
        yield f"I6 published: {len(names)} versions of one run: {names}"
    if len(seen.runs) != 1:
        yield f"I6 runs: {len(seen.runs)}"
    if len(seen.datasets) != 1 or seen.dataset_again not in seen.datasets:
        yield f"I5 dataset: {sorted(seen.datasets)}, and {seen.dataset_again} when taken again"
    if any(one.dataset is None or one.dataset.digest not in seen.datasets for one in seen.versions):
        yield "I5 version: of another dataset than its run's"
    if any(found != seen.uninterrupted for found in seen.weights.values()):
        yield "weights: not those of the run that was not interrupted"
