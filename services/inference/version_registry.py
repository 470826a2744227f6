"""What is served: the pointer that a flip moves, and the pins that keep a version in memory until its last
request ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from services.inference.core.canary_routing import choose_version
from shared.errors import UnknownVersion
from shared.telemetry import ROLLOUT_SEQ, SERVING
from shared.versions import RolloutRecord, VersionRef


@dataclass(slots=True)
class LoadedVersion:
    """A version in memory. `wanted`: the pointer names it; else it only finishes its requests."""

    ref: VersionRef
    wanted: bool
    pins: int = 0


@dataclass(frozen=True, slots=True)
class ServingState:
    """What is served, at one moment."""

    record: RolloutRecord | None
    stable: VersionRef
    canary: VersionRef | None
    share: float
    loaded: tuple[VersionRef, ...]


class VersionRegistry:
    """Thread-safe. Before the first rollout record the base is stable.

    `unload` is called, without the lock, for a version that nobody wants or uses any more.
    """

    def __init__(self, line: str, base: VersionRef, unload: Callable[[str], None]) -> None:
        self.line = line
        self.base = base
        self._unload = unload
        self._lock = threading.Lock()
        self._held = {base.version: LoadedVersion(base, wanted=True)}
        self._record: RolloutRecord | None = None
        SERVING.labels(line, base.version).set(1)

    def admit(self, model: str, user: str | None) -> str:
        """Pins and returns the version for this request: `model` is the line, or a loaded version by name.

        Each admission needs one `release`. Raises `UnknownVersion`.
        """
        with self._lock:
            version = model
            if model == self.line:
                version = (choose_version(self._record, user) if self._record else self.base).version
            held = self._held.get(version)
            if held is None or not held.wanted:
                names = ", ".join([self.line, *(v for v, h in self._held.items() if h.wanted)])
                raise UnknownVersion(f"the model {model!r} is not served here; served are: {names}")
            held.pins += 1
            return version

    def release(self, version: str) -> None:
        """A request of this version has ended."""
        with self._lock:
            held = self._held[version]
            held.pins -= 1
            idle = self._drop_if_idle(held)
        if idle:
            self._unload(version)

    def holds(self, version: str) -> bool:
        """Whether the version is in memory; if so it stays there until the next `flip` or `let_go`."""
        with self._lock:
            held = self._held.get(version)
            if held is not None:
                held.wanted = True
            return held is not None

    def add(self, ref: VersionRef) -> None:
        """The version is in memory, loaded and tried; nobody is sent to it yet but by its name."""
        with self._lock:
            self._held[ref.version] = LoadedVersion(ref, wanted=True)

    def flip(self, record: RolloutRecord) -> None:
        """From the next admission on, `record` decides. What it does not name is unloaded when its last
        request ends."""
        wanted = {ref.version for ref in (record.stable, record.canary, self.base) if ref is not None}
        with self._lock:
            before, self._record = self._record, record
        self.keep_only(wanted)
        SERVING.labels(self.line, (before.stable if before else self.base).version).set(0)
        SERVING.labels(self.line, record.stable.version).set(1)
        ROLLOUT_SEQ.labels(self.line).set(record.seq)

    def let_go(self) -> None:
        """Back to what the pointer names, after a take-over that did not come to its flip."""
        with self._lock:
            record = self._record
        refs = (record.stable, record.canary, self.base) if record else (self.base,)
        self.keep_only({ref.version for ref in refs if ref is not None})

    def keep_only(self, wanted: set[str]) -> None:
        idle = []
        with self._lock:
            for held in list(self._held.values()):
                held.wanted = held.ref.version in wanted
                if self._drop_if_idle(held):
                    idle.append(held.ref.version)
        for version in idle:
            self._unload(version)

    def snapshot(self) -> ServingState:
        with self._lock:
            record = self._record
            loaded = tuple(held.ref for held in self._held.values() if held.wanted)
        if record is None:
            return ServingState(None, self.base, None, 0.0, loaded)
        return ServingState(record, record.stable, record.canary, record.share, loaded)

    def in_memory(self) -> dict[str, int]:
        """Every version in memory with its requests under way."""
        with self._lock:
            return {version: held.pins for version, held in self._held.items()}

    def _drop_if_idle(self, held: LoadedVersion) -> bool:
        if held.wanted or held.pins or held.ref.version == self.base.version:
            return False
        del self._held[held.ref.version]
        return True
