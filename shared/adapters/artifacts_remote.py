"""The artifact store behind a URL, by fsspec: S3 and what speaks its protocol, or any other file system fsspec knows.

    <root>/<digest>/...             the files, and written last `manifest.json`, as in the local store
    <root>/claims/<digest>/<id>     somebody puts or fetches this artifact now
    <root>/going/<digest>/<id>      somebody is about to remove it

Who puts or fetches claims first and looks for `going` then; who collects marks `going` first and looks for claims then.
Where reads follow writes (S3 does so since 2020) at least one of the two sees the other: the collector gives way, and
who claimed waits for it. A claim or mark that is `STALE_S` old is of a process that died; a collector that is slower
than that gives up. Ages are differences of the store's own times, so no clock of ours has part in them.

What is fetched is kept in a local store of the same layout, and verified there on every read.
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

from shared.adapters.artifacts import (
    INCOMING,
    MANIFEST,
    REFUSED,
    LocalArtifactStore,
    manifest_of,
    missing,
    must_name,
    uri_of,
    verify,
)
from shared.errors import BadArtifact, Misconfigured, NotYet, StoreAway
from shared.events import sha256
from shared.ports import Stored

CLAIMS, GOING = "claims", "going"
STALE_S = 600.0
SLOW_S = 300.0
"""How long one removal may take, and how long who claimed waits for it."""
CACHED = 8
"""Artifacts kept to be read: what serves, what it is compared with, and some before."""
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"use_listings_cache": False, "skip_instance_cache": True}}
"""A listing that is remembered would not show what another process did."""
log = structlog.get_logger(__name__)
R = TypeVar("R")


def open_remote(url: str, cache: Path) -> RemoteArtifactStore:
    """Raises `Misconfigured` where the protocol is unknown or its library is not installed. Connects to nothing."""
    protocol = url.partition("://")[0]
    try:
        files, root = fsspec.core.url_to_fs(url, **OPTIONS.get(protocol, {}))
    except (ImportError, ValueError) as error:
        raise Misconfigured(
            f"LOOPWRIGHT_ARTIFACTS: {protocol}:// cannot be used here ({error}); for s3:// install the extra `s3`"
        ) from error
    return RemoteArtifactStore(files, root, cache)


class RemoteArtifactStore:
    """`ArtifactStore` on a file system of fsspec. `cache` is this service's own folder."""

    def __init__(self, files: AbstractFileSystem, root: str, cache: Path) -> None:
        self._files = files
        self._root = root.rstrip("/")
        self._folder = cache
        self._cache = LocalArtifactStore(cache)
        self._failures = _failures()

    def put(self, folder: Path) -> tuple[str, str]:
        manifest = manifest_of(folder)
        digest = sha256(manifest)
        with self._claimed(digest, must=True):
            if self._at(digest, MANIFEST) not in self._find(digest):
                for name in json.loads(manifest)["files"]:
                    self._ask(self._files.put_file, str(folder / name), self._at(digest, name))
            # Also where it was there: so it is as young as if it had been put now.
            self._write(manifest, digest, MANIFEST)
        return uri_of(digest), digest

    def fetch(self, uri: str, digest: str) -> Path:
        with self.held(uri, digest) as folder:
            return folder

    @contextmanager
    def held(self, uri: str, digest: str) -> Iterator[Path]:
        must_name(uri, digest)
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(self._cache.held(uri, digest))
                self._cache.renew(digest)
            except (NotYet, BadArtifact):
                self._download(digest)
                folder = stack.enter_context(self._cache.held(uri, digest))
            yield folder

    def stored(self) -> list[Stored]:
        found = []
        for digest, files in self._listed().items():
            if MANIFEST in files:
                size = sum(int(info["size"] or 0) for info in files.values())
                with suppress(NotYet):  # collected meanwhile
                    found.append(Stored(digest, _ms(self._modified(digest, MANIFEST)), size))
        return sorted(found, key=lambda one: one.digest)

    def discard(self, digest: str, unless: Callable[[Stored], bool] = lambda _: False) -> bool:
        mark = f"{GOING}/{digest}/{uuid4().hex}"
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
                    raise StoreAway(
                        f"removing artifact {digest[:8]} takes too long: it is left for another time"
                    )
                self._remove(path)
        finally:
            self._remove(self._at(mark))
        return True

    def sweep(self, before_ms: int) -> int:
        incomplete = [
            self._at(digest, name)
            for digest, files in self._listed().items()
            if MANIFEST not in files
            for name in files
        ]
        left = [*incomplete, *self._find(CLAIMS), *self._find(GOING)]
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
        """Nobody removes the artifact meanwhile. Who may only read cannot claim (`must` False): then what is removed
        under the reader is not there, and nothing worse."""
        claim = f"{CLAIMS}/{digest}/{uuid4().hex}"
        try:
            self._write(b"", claim)
        except StoreAway as error:
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
        """The claim is there: who marks from now on gives way to it, who marked before comes to an end."""
        folder = f"{GOING}/{digest}"
        before = set(self._fresh(folder, claim))
        if not before:
            return
        waiting = Retrying(retry=retry_if_result(bool), stop=stop_after_delay(SLOW_S), wait=wait_fixed(0.1))
        try:
            waiting(lambda: before.intersection(self._find(folder)))
        except RetryError:
            raise StoreAway(
                f"artifact {digest[:8]} is being removed for very long: try again later"
            ) from None

    def _fresh(self, folder: str, ours: str) -> list[str]:
        """What lies in the folder and is not of a process that died. `ours`: what was written now, for its time."""
        found, there = [], self._find(folder)
        now = self._modified(ours) if there else None
        for path in there:
            with suppress(NotYet):
                age = now - self._ask(self._files.modified, path) if now else timedelta()
                found += [path] if age.total_seconds() < STALE_S else []
        return found

    # --- the cache ---

    def _download(self, digest: str) -> None:
        """Into the cache, complete and verified, then there. Others may do the same at once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=INCOMING, dir=self._folder))
        try:
            target = staging / "files"
            target.mkdir()
            with self._claimed(digest, must=False):
                self._get(digest, target)
            verify(target, digest)
            self._cache.discard(digest)  # one that was altered there
            self._cache.adopt(target, digest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        for old in sorted(self._cache.stored(), key=lambda one: one.put_ms)[:-CACHED]:
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
                raise BadArtifact(f"{name}: does not belong in an artifact")
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
        found: datetime = self._ask(self._files.modified, self._at(*names))
        return found

    def _write(self, data: bytes, *names: str) -> None:
        self._ask(self._files.pipe_file, self._at(*names), data)

    def _remove(self, path: str) -> None:
        """No error if it is not there."""
        with suppress(NotYet):
            self._ask(self._files.rm_file, path)

    def _find(self, *names: str) -> list[str]:
        """All files below; not what some file systems name where there is none, the folder itself."""
        folder = self._at(*names)
        with suppress(NotYet):
            return sorted(path for path in self._ask(self._files.find, folder) if path != folder)
        return []

    def _listed(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By digest and name: what is known of each file."""
        found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        with suppress(NotYet):
            listed: dict[str, dict[str, Any]] = self._ask(self._files.find, self._root, detail=True)
            for path, info in listed.items():
                digest, _, name = path.removeprefix(self._root).lstrip("/").partition("/")
                if digest not in (CLAIMS, GOING) and name:
                    found[digest][name] = info
        return found

    def _ask(self, call: Callable[..., R], *arguments: Any, **more: Any) -> R:
        """Raises `NotYet` for what is not there, `StoreAway` for all else that went wrong."""
        try:
            return call(*arguments, **more)
        except FileNotFoundError:
            raise NotYet("there is nothing of that name in the artifact store") from None
        except self._failures as error:
            reason = str(error) or type(error).__name__
            raise StoreAway(f"the artifact store cannot be used now: {reason}") from error


def _failures() -> tuple[type[Exception], ...]:
    """What file systems raise: S3's library has errors of its own for missing credentials and lost connections."""
    found: list[type[Exception]] = [OSError, TimeoutError]
    module = sys.modules.get(
        "botocore.exceptions"
    )  # loaded where S3's library is, which is an optional extra
    if module is not None:
        found += [module.BotoCoreError, module.ClientError]
    return tuple(found)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
