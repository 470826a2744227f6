"""The versions in memory: which of them answers a request, and when one may be unloaded."""

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
    """A version in memory. An unwanted one accepts no requests and is unloaded after its last one."""

    ref: VersionRef
    wanted: bool
    requests: int = 0


@dataclass(frozen=True, slots=True)
class ServingState:
    """The versions that accept requests at one moment. `record` is None before the first rollout record."""

    record: RolloutRecord | None
    stable: VersionRef
    canary: VersionRef | None
    share: float
    loaded: tuple[VersionRef, ...]


class VersionRegistry:
    """The rollout record in force, and the versions in memory with their requests in flight. Thread-safe.

    Before the first rollout record, the base is the stable version.

    Args:
        line: The line that is served.
        base: Its base; always in memory.
        unload: Called, without a lock held, with a version that can be unloaded now.
        keep_previous: Whether the version before the stable one stays in memory, so that a rollback to it loads
            nothing. It accepts no requests meanwhile.

    """

    def __init__(
        self, line: str, base: VersionRef, unload: Callable[[str], None], *, keep_previous: bool = False
    ) -> None:
        self.line = line
        self.base = base
        self._unload = unload
        self._keep_previous = keep_previous
        self._lock = threading.Lock()
        self._versions = {base.version: LoadedVersion(base, wanted=True)}
        self._record: RolloutRecord | None = None
        SERVING.labels(line, base.version).set(1)

    def acquire(self, model: str, user: str | None) -> str:
        """Return the version for a request and keep it in memory until `release` is called with it.

        Args:
            model: The line, or the name of a loaded version.
            user: The user's pseudonym, if known. Only requests with a user can get the canary.

        Raises:
            UnknownVersion: if `model` is not the line or a version that accepts requests.

        """
        with self._lock:
            version = model
            if model == self.line:
                version = (choose_version(self._record, user) if self._record else self.base).version
            entry = self._versions.get(version)
            if entry is None or not entry.wanted:
                names = ", ".join([self.line, *(name for name, e in self._versions.items() if e.wanted)])
                raise UnknownVersion(f"the model {model!r} is not available; available models: {names}")
            entry.requests += 1
            return version

    def release(self, version: str) -> None:
        """Note the end of a request. If it was the last of an unwanted version, that is unloaded."""
        with self._lock:
            entry = self._versions[version]
            entry.requests -= 1
            unused = self._remove_if_unused(entry)
        if unused:
            self._unload(version)

    def retain(self, version: str) -> bool:
        """Return whether a version is in memory, and keep it there until `activate` or `unload_unreferenced`."""
        with self._lock:
            entry = self._versions.get(version)
            if entry is not None:
                entry.wanted = True
            return entry is not None

    def add(self, ref: VersionRef) -> None:
        """Add a version that the engine has loaded. Until `activate`, only requests that name it get it."""
        with self._lock:
            self._versions[ref.version] = LoadedVersion(ref, wanted=True)

    def activate(self, record: RolloutRecord) -> None:
        """Let `record` decide from the next request on. Versions that it does not name are unloaded when unused."""
        with self._lock:
            previous, self._record = self._record, record
        self._keep_only(record)
        SERVING.labels(self.line, (previous.stable if previous else self.base).version).set(0)
        SERVING.labels(self.line, record.stable.version).set(1)
        ROLLOUT_SEQ.labels(self.line).set(record.seq)

    def unload_unreferenced(self) -> None:
        """Unload the versions that a swap loaded before it was abandoned."""
        with self._lock:
            record = self._record
        self._keep_only(record)

    def state(self) -> ServingState:
        """Return the versions that accept requests now."""
        with self._lock:
            record = self._record
            loaded = tuple(entry.ref for entry in self._versions.values() if entry.wanted)
        if record is None:
            return ServingState(None, self.base, None, 0.0, loaded)
        return ServingState(record, record.stable, record.canary, record.share, loaded)

    def in_flight(self) -> dict[str, int]:
        """Return every version in memory with the number of its requests in flight."""
        with self._lock:
            return {version: entry.requests for version, entry in self._versions.items()}

    def _keep_only(self, record: RolloutRecord | None) -> None:
        """Mark the versions of `record` and the base as wanted, and unload the others that are unused."""
        refs = (self.base,) if record is None else (record.stable, record.canary, self.base)
        wanted = {ref.version for ref in refs if ref is not None}
        unused = []
        with self._lock:
            for entry in list(self._versions.values()):
                entry.wanted = entry.ref.version in wanted
                if self._remove_if_unused(entry):
                    unused.append(entry.ref.version)
        for version in unused:
            self._unload(version)

    def _remove_if_unused(self, entry: LoadedVersion) -> bool:
        if entry.wanted or entry.requests or entry.ref.version == self.base.version:
            return False
        previous = self._record.previous if self._record is not None and self._keep_previous else None
        if previous is not None and entry.ref.version == previous.version:
            return False
        del self._versions[entry.ref.version]
        return True
