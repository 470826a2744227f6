"""From a rollout record to what is served: fetch, verify, load, try, warm, flip; the old version drains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from services.inference.version_registry import VersionRegistry
from shared.errors import BadArtifact, LoopwrightError, NotYet, Retryable
from shared.ports import ArtifactStore
from shared.telemetry import ARTIFACTS_REFUSED
from shared.versions import RolloutRecord, VersionRef

log = structlog.get_logger(__name__)


class Loader(Protocol):
    """Brings a version into memory, tried and warm; raises `BadArtifact`, and then nothing has changed."""

    def load(self, version: str, folder: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that a rollout record names and that is not served, and why."""

    version: str
    seq: int
    code: str
    message: str


class VersionSwap:
    """One thread calls it. `seq` only grows (I7): a record that is not newer than the newest seen is
    ignored, also where that one was refused. A refused stable changes nothing; a refused canary only means
    that there is none."""

    def __init__(
        self,
        serving: VersionRegistry,
        store: ArtifactStore,
        loader: Loader,
        on_refusals: Callable[[tuple[Refusal, ...]], None],
    ) -> None:
        self._serving = serving
        self._store = store
        self._loader = loader
        self._on_refusals = on_refusals
        self._newest: RolloutRecord | None = None
        self._again: RolloutRecord | None = None
        self.refusals: tuple[Refusal, ...] = ()

    def newer(self, record: RolloutRecord) -> bool:
        """Whether the record is of this line and newer than every one seen."""
        return record.line == self._serving.line and (self._newest is None or record.seq > self._newest.seq)

    def apply(self, record: RolloutRecord) -> None:
        """Takes over what the record asks for, or refuses it. Blocks while versions load; chats go on
        meanwhile."""
        if self.newer(record):
            self._newest = record
            self._try(record)

    def again(self) -> None:
        """Tries the newest record once more if it was refused for a reason that may pass."""
        if self._again is not None:
            self._try(self._again)

    def _try(self, record: RolloutRecord) -> None:
        self._again = None
        refusals: list[Refusal] = []
        stable = self._ready(record.stable, record, refusals)
        canary = record.canary if record.share > 0 else None
        if canary is not None and not (stable and self._ready(canary, record, refusals)):
            canary = None
        if stable:
            served = record.model_copy(update={"canary": canary, "share": record.share if canary else 0.0})
            self._serving.flip(served)
            log.info("took_over", seq=record.seq, stable=record.stable.version, reason=record.reason)
        elif not self._fall_back(record):
            self._serving.let_go()
        self.refusals = tuple(refusals)
        self._on_refusals(self.refusals)

    def _fall_back(self, record: RolloutRecord) -> bool:
        """A replica that starts beside a refused stable serves the one before it, if it can; else the base."""
        if self._serving.snapshot().record is not None or record.previous is None:
            return False
        if not self._ready(record.previous, record, []):
            return False
        self._serving.flip(
            record.model_copy(update={"stable": record.previous, "canary": None, "share": 0.0})
        )
        log.warning("serving_previous", seq=record.seq, stable=record.previous.version)
        return True

    def _ready(self, ref: VersionRef, record: RolloutRecord, refusals: list[Refusal]) -> bool:
        try:
            self._bring(ref)
        except LoopwrightError as error:
            refusals.append(Refusal(ref.version, record.seq, error.code, str(error)))
            if isinstance(error, Retryable):
                self._again = record
            ARTIFACTS_REFUSED.inc()
            log.warning(
                "version_refused", version=ref.version, seq=record.seq, code=error.code, error=str(error)
            )
            return False
        return True

    def _bring(self, ref: VersionRef) -> None:
        """The version is in memory afterwards. Raises `BadArtifact`, or `NotYet` where it is not in the
        store."""
        base = self._serving.base
        if ref.kind == "base":
            if ref.digest != base.digest:
                raise BadArtifact(
                    f"{ref.version} is another base than the one loaded here ({base.version}): "
                    "set LOOPWRIGHT_BASE_MODEL of every service to the same model"
                )
            return
        if ref.kind == "full":
            raise BadArtifact(
                f"{ref.version} is a full model; this release serves LoRA adapters over one base only"
            )
        if not ref.version.startswith(f"{self._serving.line}@") or not ref.version.endswith(
            f"-{ref.digest[:8]}"
        ):
            raise BadArtifact(
                f"{ref.version} is not the name that its line and its digest {ref.digest[:8]} give it"
            )
        if self._serving.holds(ref.version):
            return
        try:
            with self._store.held(ref.uri, ref.digest) as folder:
                self._loader.load(ref.version, folder)
        except OSError as error:
            raise NotYet(f"{ref.version}: the artifact store cannot be read: {error}") from error
        self._serving.add(ref)
