"""The artifact store behind a URL, through fsspec: S3 and compatible stores, or any other file system fsspec knows.

    <root>/<digest>/...             the files and, written last, `manifest.json`, as in the local store
    <root>/claims/<digest>/<id>     a process is putting or fetching this artifact
    <root>/going/<digest>/<id>      a process is about to remove it

A process that puts or fetches first writes a claim, then looks for removal marks; the garbage collector first writes a
removal mark, then looks for claims. Because reads follow writes (on S3 since 2020), at least one of the two sees the
other: the collector gives way, and the claimant waits for it. A claim or mark older than `STALE_S` belongs to a process
that died; a collector that takes longer gives up. Ages are differences between the store's own times, so no local clock
is involved.

Fetched artifacts are kept in a local store of the same layout and verified there on every read.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from uuid import uuid4

import fsspec
import structlog
from fsspec.spec import AbstractFileSystem
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from shared.adapters.artifact_manifest import (
    INCOMING,
    MANIFEST,
    REFUSED,
    check_uri,
    manifest_of,
    missing,
    uri_of,
    verify,
)
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.errors import BadArtifact, Misconfigured, NotYet, StoreUnavailable
from shared.events import sha256
from shared.ports import Stored

CLAIMS, REMOVALS = "claims", "going"
STALE_S = 600.0
"""Age in seconds from which a claim or removal mark is ignored."""
SLOW_S = 300.0
"""Longest time in seconds that one removal may take, and that a claimant waits for it."""
CACHED = 8
"""Artifacts kept locally: the one that serves, the one it is compared with, and some earlier ones."""
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"use_listings_cache": False, "skip_instance_cache": True}}
"""A cached listing would not show what another process did."""
log = structlog.get_logger(__name__)
R = TypeVar("R")


def open_remote(url: str, cache: Path) -> RemoteArtifactStore:
    """Return the store at `url` without connecting to it.

    Raises:
        Misconfigured: if the protocol is unknown or its library is not installed.

    """
    protocol = url.partition("://")[0]
    try:
        files, root = fsspec.core.url_to_fs(url, **OPTIONS.get(protocol, {}))
    except (ImportError, ValueError) as error:
        raise Misconfigured(
            f"LOOPWRIGHT_ARTIFACTS: {protocol}:// cannot be used here ({error}); for s3:// install the extra `s3`"
        ) from error
    return RemoteArtifactStore(files, root, cache)


class RemoteArtifactStore:
    """`ArtifactStore` on an fsspec file system. `cache` is a folder of this service only."""

    def __init__(self, files: AbstractFileSystem, root: str, cache: Path) -> None:
        self._files = files
        self._root = root.rstrip("/")
        self._folder = cache
        self._cache = LocalArtifactStore(cache)
        self._failures = _failures()

    def put(self, folder: Path) -> tuple[str, str]:
        """Store a folder and return (uri, digest)."""
        manifest = manifest_of(folder)
        digest = sha256(manifest)
        with self._claimed(digest, must=True):
            if self._at(digest, MANIFEST) not in self._find(digest):
                for name in json.loads(manifest)["files"]:
                    self._ask(self._files.put_file, str(folder / name), self._at(digest, name))
            # Written even if it exists: this refreshes the age of the artifact.
            self._write(manifest, digest, MANIFEST)
        return uri_of(digest), digest

    def fetch(self, uri: str, digest: str) -> Path:
        """Return a verified local folder."""
        with self.held(uri, digest) as folder:
            return folder

    @contextmanager
    def held(self, uri: str, digest: str) -> Iterator[Path]:
        """Keep an artifact from being removed until the block ends."""
        check_uri(uri, digest)
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(self._cache.held(uri, digest))
                self._cache.renew(digest)
            except (NotYet, BadArtifact):
                self._download(digest)
                folder = stack.enter_context(self._cache.held(uri, digest))
            yield folder

    def stored(self) -> list[Stored]:
        """Return all complete artifacts, sorted by digest."""
        artifacts = []
        for digest, files in self._listed().items():
            if MANIFEST in files:
                size = sum(int(info["size"] or 0) for info in files.values())
                with suppress(NotYet):  # removed meanwhile
                    artifacts.append(Stored(digest, _ms(self._modified(digest, MANIFEST)), size))
        return sorted(artifacts, key=lambda artifact: artifact.digest)

    def discard(self, digest: str, unless: Callable[[Stored], bool] = lambda _: False) -> bool:
        """Remove an artifact unless it is held or `unless` returns True."""
        mark = f"{REMOVALS}/{digest}/{uuid4().hex}"
        began = time.monotonic()
        self._write(b"", mark)
        try:
            manifest, files = self._at(digest, MANIFEST), self._find(digest)
            if self._fresh(f"{CLAIMS}/{digest}", mark) or manifest not in files:
                return False
            size = sum(int(self._ask(self._files.size, path) or 0) for path in files)
            if unless(Stored(digest, _ms(self._modified(digest, MANIFEST)), size)):
                return False
            for path in (manifest, *(path for path in files if path != manifest)):
                if time.monotonic() - began > SLOW_S:
                    raise StoreUnavailable(
                        f"removing artifact {digest[:8]} takes too long: left for the next collection"
                    )
                self._remove(path)
        finally:
            self._remove(self._at(mark))
        return True

    def sweep(self, before_ms: int) -> int:
        """Remove leftovers of interrupted writers and collectors."""
        incomplete = [
            self._at(digest, name)
            for digest, files in self._listed().items()
            if MANIFEST not in files
            for name in files
        ]
        left = [*incomplete, *self._find(CLAIMS), *self._find(REMOVALS)]
        old = []
        for path in left:
            with suppress(NotYet):
                old += [path] if _ms(self._ask(self._files.modified, path)) < before_ms else []
        for path in old:
            self._remove(path)
        return len(old) + self._cache.sweep(before_ms)

    # --- claims ---

    @contextmanager
    def _claimed(self, digest: str, *, must: bool) -> Iterator[None]:
        """Keep the artifact from being removed until the block ends.

        A process with read-only access cannot claim. With `must` False it continues without: if the artifact is
        removed meanwhile, the reader gets `NotYet`, never a part of it.
        """
        claim = f"{CLAIMS}/{digest}/{uuid4().hex}"
        try:
            self._write(b"", claim)
        except StoreUnavailable as error:
            if must or not isinstance(error.__cause__, PermissionError):
                raise
            yield
            return
        try:
            self._wait_for_collectors(digest, claim)
            yield
        finally:
            self._remove(self._at(claim))

    def _wait_for_collectors(self, digest: str, claim: str) -> None:
        """Wait until removals that began before our claim have ended. Later ones give way to the claim."""
        folder = f"{REMOVALS}/{digest}"
        before = set(self._fresh(folder, claim))
        if not before:
            return
        waiting = Retrying(retry=retry_if_result(bool), stop=stop_after_delay(SLOW_S), wait=wait_fixed(0.1))
        try:
            waiting(lambda: before.intersection(self._find(folder)))
        except RetryError:
            raise StoreUnavailable(
                f"artifact {digest[:8]} is still being removed after {SLOW_S:.0f} s: try again later"
            ) from None

    def _fresh(self, folder: str, ours: str) -> list[str]:
        """Return the marks in a folder whose process may still live. `ours` was just written: its time is now."""
        fresh, marks = [], self._find(folder)
        now = self._modified(ours) if marks else None
        for path in marks:
            with suppress(NotYet):
                age = now - self._ask(self._files.modified, path) if now else timedelta()
                fresh += [path] if age.total_seconds() < STALE_S else []
        return fresh

    # --- the cache ---

    def _download(self, digest: str) -> None:
        """Fetch an artifact into the cache; it appears there complete and verified. Safe to run concurrently."""
        self._folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=INCOMING, dir=self._folder))
        try:
            target = staging / "files"
            target.mkdir()
            with self._claimed(digest, must=False):
                self._get(digest, target)
            verify(target, digest)
            self._cache.discard(digest)  # a copy that was altered there
            self._cache.adopt(target, digest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        for old in sorted(self._cache.stored(), key=lambda artifact: artifact.put_ms)[:-CACHED]:
            self._cache.discard(old.digest)

    def _get(self, digest: str, target: Path) -> None:
        try:
            manifest = self._ask(self._files.cat_file, self._at(digest, MANIFEST))
        except NotYet:
            raise missing(digest) from None
        if sha256(manifest) != digest:
            raise BadArtifact(f"artifact {digest[:8]}: its manifest is not the one that was published")
        for name in json.loads(manifest)["files"]:
            parts = PurePosixPath(name)
            if (
                parts.is_absolute()
                or parts.suffix in REFUSED
                or any(part.startswith(".") for part in parts.parts)
            ):
                raise BadArtifact(f"{name}: an artifact may not contain this file")
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._ask(self._files.get_file, self._at(digest, name), str(target / name))
            except NotYet:
                raise BadArtifact(f"artifact {digest[:8]}: altered, missing or added: {name}") from None
        (target / MANIFEST).write_bytes(manifest)

    # --- the file system ---

    def _at(self, *names: str) -> str:
        return "/".join((self._root, *names))

    def _modified(self, *names: str) -> datetime:
        modified: datetime = self._ask(self._files.modified, self._at(*names))
        return modified

    def _write(self, data: bytes, *names: str) -> None:
        self._ask(self._files.pipe_file, self._at(*names), data)

    def _remove(self, path: str) -> None:
        """Remove a file; do nothing if it does not exist."""
        with suppress(NotYet):
            self._ask(self._files.rm_file, path)

    def _find(self, *names: str) -> list[str]:
        """Return all files below a folder. Some file systems list the folder itself if it is empty; it is left out."""
        folder = self._at(*names)
        with suppress(NotYet):
            return sorted(path for path in self._ask(self._files.find, folder) if path != folder)
        return []

    def _listed(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return fsspec's information on each file, by digest and name."""
        found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        with suppress(NotYet):
            listed: dict[str, dict[str, Any]] = self._ask(self._files.find, self._root, detail=True)
            for path, info in listed.items():
                digest, _, name = path.removeprefix(self._root).lstrip("/").partition("/")
                if digest not in (CLAIMS, REMOVALS) and name:
                    found[digest][name] = info
        return found

    def _ask(self, call: Callable[..., R], *arguments: Any, **more: Any) -> R:
        """Call the file system. Raises `NotYet` for a missing file, `StoreUnavailable` for any other failure."""
        try:
            return call(*arguments, **more)
        except FileNotFoundError:
            raise NotYet("the artifact store has no file of this name") from None
        except self._failures as error:
            reason = str(error) or type(error).__name__
            raise StoreUnavailable(f"the artifact store is unavailable: {reason}") from error


def _failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that file systems raise. S3's library adds its own for credentials and connections."""
    failures: list[type[Exception]] = [OSError, TimeoutError]
    # Loaded only if S3's library is installed, which is an optional extra.
    module = sys.modules.get("botocore.exceptions")
    if module is not None:
        failures += [module.BotoCoreError, module.ClientError]
    return tuple(failures)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
