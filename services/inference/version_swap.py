"""Swap to the versions of a rollout record: fetch, verify, load, activate; the old version drains."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.inference.engine.port import InferenceEngine
from services.inference.version_registry import VersionRegistry
from shared.adapters.artifact_manifest import LINEAGE_FILE
from shared.chat_format import TemplateKwargs
from shared.errors import BadArtifact, LoopwrightError, NotYet, Retryable
from shared.ports import ArtifactStore
from shared.telemetry import ARTIFACTS_REFUSED
from shared.versions import RolloutRecord, VersionRef

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that the rollout record `seq` names but that is not served, with the error."""

    version: str
    seq: int
    code: str
    message: str


class VersionSwap:
    """Applies rollout records. Call it from one thread.

    `seq` only grows (I7): a record that is not newer than the newest one seen is ignored, even if that was refused.
    If the stable version is refused, nothing changes. If only the canary is refused, there is no canary.

    Args:
        registry: Decides which version answers, according to the record that is activated here.
        store: Has the artifacts.
        engine: Loads the versions.
        on_refusals: Called after each attempt with the versions that were refused.
        on_served: Called with each record that the log ordered and that is served now.
        template_kwargs: Arguments of the chat template with which prompts are built here.

    """

    def __init__(
        self,
        registry: VersionRegistry,
        store: ArtifactStore,
        engine: InferenceEngine,
        on_refusals: Callable[[tuple[Refusal, ...]], None],
        template_kwargs: TemplateKwargs | None = None,
        on_served: Callable[[RolloutRecord], None] = lambda _: None,
    ) -> None:
        self._registry = registry
        self._store = store
        self._engine = engine
        self._on_refusals = on_refusals
        self._on_served = on_served
        self._template_kwargs = dict(template_kwargs or {})
        self._newest: RolloutRecord | None = None
        self._to_retry: RolloutRecord | None = None
        self.refusals: tuple[Refusal, ...] = ()

    def is_newer(self, record: RolloutRecord) -> bool:
        """Return whether the record belongs to this line and is newer than all records seen."""
        return record.line == self._registry.line and (self._newest is None or record.seq > self._newest.seq)

    def apply(self, record: RolloutRecord) -> None:
        """Serve the versions that the record names, or refuse them.

        Blocks while versions are loaded. Requests are answered meanwhile.
        """
        if self.is_newer(record):
            self._newest = record
            self._attempt(record)

    def retry(self) -> None:
        """Apply the newest record again if it was refused for a temporary reason."""
        if self._to_retry is not None:
            self._attempt(self._to_retry)

    def _attempt(self, record: RolloutRecord) -> None:
        self._to_retry = None
        refusals: list[Refusal] = []
        stable_loaded = self._try_load(record.stable, record, refusals)
        canary = record.canary if record.share > 0 else None
        if canary is not None and not (stable_loaded and self._try_load(canary, record, refusals)):
            canary = None
        if stable_loaded:
            share = record.share if canary else 0.0
            self._registry.activate(record.model_copy(update={"canary": canary, "share": share}))
            log.info("version_swapped", seq=record.seq, stable=record.stable.version, reason=record.reason)
            self._on_served(record)
        elif not self._activate_previous(record):
            self._registry.unload_unreferenced()
        self.refusals = tuple(refusals)
        self._on_refusals(self.refusals)

    def _activate_previous(self, record: RolloutRecord) -> bool:
        """Serve the previous stable version if this replica has just started and the stable one was refused.

        Return whether that version is served now. If not, the base is.
        """
        if self._registry.state().record is not None or record.previous is None:
            return False
        if not self._try_load(record.previous, record, []):
            return False
        self._registry.activate(
            record.model_copy(update={"stable": record.previous, "canary": None, "share": 0.0})
        )
        log.warning("serving_previous_version", seq=record.seq, stable=record.previous.version)
        return True

    def _try_load(self, ref: VersionRef, record: RolloutRecord, refusals: list[Refusal]) -> bool:
        """Return whether the version is loaded. If not, add the reason to `refusals`."""
        try:
            self._load(ref)
        except LoopwrightError as error:
            refusals.append(Refusal(ref.version, record.seq, error.code, str(error)))
            if isinstance(error, Retryable):
                self._to_retry = record
            ARTIFACTS_REFUSED.inc()
            log.warning(
                "version_refused", version=ref.version, seq=record.seq, code=error.code, error=str(error)
            )
            return False
        return True

    def _load(self, ref: VersionRef) -> None:
        """Load the version unless it is in memory.

        Raises:
            BadArtifact: if the version cannot be served here.
            NotYet: if its artifact is not in the store, or the store cannot be read.

        """
        base = self._registry.base
        if ref.kind == "base":
            if ref.digest != base.digest:
                raise BadArtifact(
                    f"{ref.version} is another base than the one loaded here ({base.version}): "
                    "set LOOPWRIGHT_BASE_MODEL to the same model for every service"
                )
            return
        if ref.kind == "full":
            raise BadArtifact(f"{ref.version} is a full model; only LoRA adapters of the base can be served")
        is_of_line = ref.version.startswith(f"{self._registry.line}@")
        if not is_of_line or not ref.version.endswith(f"-{ref.digest[:8]}"):
            raise BadArtifact(
                f"{ref.version} does not match its line and digest: "
                f"expected {self._registry.line}@v<number>-{ref.digest[:8]}"
            )
        if self._registry.retain(ref.version):
            return
        try:
            with self._store.held(ref.uri, ref.digest) as folder:
                require_template_kwargs(ref.version, folder, self._template_kwargs)
                self._engine.load(ref.version, folder)
        except OSError as error:
            raise NotYet(f"{ref.version}: the artifact store cannot be read: {error}") from error
        self._registry.add(ref)


def require_template_kwargs(version: str, folder: Path, template_kwargs: TemplateKwargs) -> None:
    """Require that a version was trained and gated with the prompts that it would get here.

    An artifact that does not say how it was trained is accepted. Raises `BadArtifact`.
    """
    file = folder / LINEAGE_FILE
    if not file.exists():
        return
    try:
        trained = json.loads(file.read_bytes()).get("chat_template_kwargs", {})
    except (ValueError, AttributeError) as error:
        raise BadArtifact(f"{version}: {LINEAGE_FILE} cannot be read: {error}") from error
    if trained != dict(template_kwargs):
        raise BadArtifact(
            f"{version} was trained and gated with other prompts: set LOOPWRIGHT_CHAT_TEMPLATE_KWARGS="
            f"{json.dumps(trained)} for inference (now {json.dumps(dict(template_kwargs))}), or train a new version"
        )
