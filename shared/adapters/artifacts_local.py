"""The artifact store in a folder that all services share. Layout: `<root>/<digest>/` per artifact.

A reader holds a shared `flock` on the manifest; the garbage collector needs an exclusive one. On one machine, or a
file system that supports such locks, nothing is removed while it is read. Readers need no write permission for this.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shared.adapters.artifact_manifest import (
    INCOMING,
    MANIFEST,
    check_uri,
    copy_whole,
    manifest_of,
    missing,
    uri_of,
    verify,
)
from shared.errors import NotYet
from shared.events import sha256
from shared.ports import Stored

REMOVING = ".going-"
"""Prefix of temporary folders in which artifacts are deleted."""


class LocalArtifactStore:
    """`ArtifactStore` in a folder that all services share."""

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root).resolve()

    def put(self, folder: Path) -> tuple[str, str]:
        """Store a folder and return (uri, digest)."""
        manifest = manifest_of(folder)
        digest = sha256(manifest)
        while not self.renew(digest):
            self._root.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=INCOMING, dir=self._root))
            try:
                copy_whole(folder, staging / "files", manifest)
                self.adopt(staging / "files", digest)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return uri_of(digest), digest

    def fetch(self, uri: str, digest: str) -> Path:
        """Return a verified local folder."""
        check_uri(uri, digest)
        verify(self._root / digest, digest)
        return self._root / digest

    @contextmanager
    def held(self, uri: str, digest: str) -> Iterator[Path]:
        """Keep an artifact from being removed until the block ends."""
        check_uri(uri, digest)
        with self._lock(digest, fcntl.LOCK_SH):
            yield self.fetch(uri, digest)

    def stored(self) -> list[Stored]:
        """Return all complete artifacts, sorted by digest."""
        artifacts = []
        for path in sorted(self._root.glob(f"*/{MANIFEST}")):
            with suppress(FileNotFoundError):  # removed meanwhile
                artifacts += [_stored(path)] if not path.parent.name.startswith(".") else []
        return artifacts

    def discard(self, digest: str, unless: Callable[[Stored], bool] = lambda _: False) -> bool:
        """Remove an artifact unless it is held or `unless` returns True."""
        try:
            with self._lock(digest, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if unless(_stored(self._root / digest / MANIFEST)):
                    return False
                doomed = Path(tempfile.mkdtemp(prefix=REMOVING, dir=self._root))
                (self._root / digest).rename(doomed / digest)
        except (NotYet, BlockingIOError):
            return False
        shutil.rmtree(doomed, ignore_errors=True)
        return True

    def sweep(self, before_ms: int) -> int:
        """Remove leftovers of interrupted writers and collectors."""
        left = [path for prefix in (REMOVING, INCOMING) for path in self._root.glob(f"{prefix}*")]
        left += [path for path in self._root.glob("*") if path.is_dir() and not (path / MANIFEST).exists()]
        old = [path for path in dict.fromkeys(left) if _mtime_ms(path) < before_ms]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        return len(old)

    def renew(self, digest: str) -> bool:
        """Refresh the age of an artifact, as if it had just been put; return whether it is in the store."""
        try:
            with self._lock(digest, fcntl.LOCK_SH):
                os.utime(self._root / digest / MANIFEST)
                return True
        except NotYet:
            return False

    @contextmanager
    def _lock(self, digest: str, kind: int) -> Iterator[IO[bytes]]:
        """Lock the artifact. Raises `NotYet` if it is not in the store, or was removed while waiting for the lock."""
        path = self._root / digest / MANIFEST
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise missing(digest) from None
        with file:
            fcntl.flock(file, kind)
            try:
                current = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                current = False
            if not current:
                raise missing(digest)
            yield file

    def adopt(self, staged: Path, digest: str) -> None:
        """Rename a complete folder on the same disk to its final name, unless another process did so first."""
        target = self._root / digest
        try:
            staged.rename(target)
        except OSError:
            if not (target / MANIFEST).exists():
                raise


def _stored(manifest: Path) -> Stored:
    size = sum(file.stat().st_size for file in manifest.parent.rglob("*") if file.is_file())
    return Stored(manifest.parent.name, round(manifest.stat().st_mtime * 1000), size)


def _mtime_ms(path: Path) -> float:
    try:
        return path.stat().st_mtime * 1000
    except FileNotFoundError:
        return float("inf")
