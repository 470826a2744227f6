"""The folder that gateways and vLLM servers share: one immutable folder per adapter, deleted when nobody needs it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from services.inference.engine.vllm.adapter_check import ADAPTER_FILES

HOLD_EXPIRES_S = 120.0
"""A hold that was not refreshed for this time belongs to a gateway that died."""
ABANDONED_S = 600.0
"""Adapters without a hold are kept for this time, so that a restarted gateway finds those of its predecessor."""
log = structlog.get_logger(__name__)


class AdapterFolder:
    """Adapters by version, each in a folder named after the version and its content.

    Servers read an adapter again after they have evicted it from memory, so its folder must not change or disappear
    while any gateway serves it. Each gateway marks the adapters that it serves with a hold: a file that it refreshes.

    Layout: `<root>/<version>.<digest>/` with the adapter's files, `<root>/.holds/<version>.<digest>/<gateway>`, and
    `<root>/.lock`.

    Args:
        root: The folder, at the same path for all gateways and servers.
        gateway: A name that no other gateway has.

    """

    def __init__(self, root: Path, gateway: str) -> None:
        self.root = root.absolute()
        self._holds = self.root / ".holds"
        self._gateway = gateway
        self._held: set[str] = set()

    def add(self, version: str, source: Path) -> Path:
        """Copy an adapter completely, hold it, and return its folder. An adapter that is there is not copied again.

        Raises:
            OSError: if it cannot be written.

        """
        contents = {name: (source / name).read_bytes() for name in ADAPTER_FILES}
        digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents.values()))
        target = self.root / f"{version}.{digest.hexdigest()[:16]}"
        with self._locked():
            self._hold(target.name)
            if not target.is_dir():
                self._write(target, contents)
        return target

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other gateways from adding and deleting meanwhile. The kernel releases the lock of a dead gateway."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write(self, target: Path, contents: dict[str, bytes]) -> None:
        """Write the files under a temporary name, then rename the folder."""
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.root))
        try:
            partial.chmod(0o755)  # servers may run as another user
            for name, content in contents.items():
                with (partial / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                (partial / name).chmod(0o644)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def release(self, folder: Path) -> bool:
        """Give up this gateway's hold. Return whether no other gateway holds the adapter."""
        self._held.discard(folder.name)
        (self._holds / folder.name / self._gateway).unlink(missing_ok=True)
        return not self._is_held(folder.name, HOLD_EXPIRES_S)

    def delete(self, folder: Path) -> None:
        """Delete an adapter that no server has loaded, unless a gateway holds it now."""
        with self._locked():
            if self._is_held(folder.name, HOLD_EXPIRES_S):
                return
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(self._holds / folder.name, ignore_errors=True)
        log.info("adapter_deleted", folder=str(folder))

    def refresh(self) -> None:
        """Refresh this gateway's holds. Called much more often than they expire."""
        for name in list(self._held):
            self._hold(name)

    def abandoned(self) -> list[Path]:
        """Return the adapters that no gateway has held for a while, for instance because it was killed."""
        if not self.root.is_dir():
            return []
        return [
            folder
            for folder in self.root.iterdir()
            if not folder.name.startswith(".")
            and folder.name not in self._held
            and time.time() - folder.stat().st_mtime > ABANDONED_S
            and not self._is_held(folder.name, ABANDONED_S)
        ]

    def _hold(self, name: str) -> None:
        self._held.add(name)
        holds = self._holds / name
        holds.mkdir(parents=True, exist_ok=True)
        (holds / self._gateway).touch()

    def _is_held(self, name: str, expires_s: float) -> bool:
        """Return whether a gateway has refreshed its hold within this time."""
        now = time.time()
        try:
            return any(now - hold.stat().st_mtime <= expires_s for hold in (self._holds / name).iterdir())
        except FileNotFoundError:
            return False
