"""Artifacts: immutable folders of files, named by content, verified on every read. This one is the store on a local
folder; `artifacts_remote.py` has the one behind a URL, with the same layout.

Layout: `<root>/<digest>/` holds the files and, written last, `manifest.json`: {"files": {name: sha256}}. The digest
is the sha256 of the manifest, so one value names and verifies the whole. What has no manifest is not there.

Who reads an artifact holds its manifest by a shared `flock`, who collects it needs that alone: on one machine, or a
file system that has such locks, nothing is taken away under a reader. A reader needs no right to write for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from shared.errors import BadArtifact, Misconfigured, NotYet
from shared.events import canonical_json, sha256
from shared.ports import ArtifactStore, Stored

MANIFEST = "manifest.json"
REFUSED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so"})
"""Weights are safetensors; anything that can carry code is refused."""
GOING, INCOMING = ".going-", ".incoming-"


def open_artifacts(place: str | Path, cache: Path) -> ArtifactStore:
    """The store at a folder, or at a URL that fsspec knows (`s3://bucket/prefix`). `cache`: where what a URL names is
    kept to be read. Credentials come from the environment; raises `Misconfigured` where the URL has some in it, or
    its protocol is not installed."""
    told = str(place)
    if "://" not in told:
        return LocalArtifactStore(Path(told))
    parts = urlsplit(told)
    if parts.scheme == "file":
        return LocalArtifactStore(Path(parts.path))
    if "@" in parts.netloc:
        raise Misconfigured(
            "LOOPWRIGHT_ARTIFACTS has credentials in its URL, where logs would show them: give them by the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role)"
        )
    from shared.adapters.artifacts_remote import open_remote  # noqa: PLC0415 - fsspec, only where there is a URL

    return open_remote(told, cache)


def uri_of(digest: str) -> str:
    """The same wherever the store is."""
    return f"artifact:{digest}"


def must_name(uri: str, digest: str) -> None:
    """Raises `BadArtifact` unless the URI is the digest's."""
    if uri != uri_of(digest):
        raise BadArtifact(f"{uri} does not name the digest {digest[:8]} that was published with it")


def file_digest(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_of(folder: Path) -> bytes:
    """The canonical manifest of all files below `folder`. Raises `BadArtifact` for what may not be in an artifact."""
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or any(part.startswith(".") for part in Path(name).parts):
            raise BadArtifact(f"{name}: links and hidden files do not belong in an artifact")
        if path.suffix in REFUSED:
            raise BadArtifact(f"{name}: files of kind {path.suffix} are refused; weights are safetensors")
        if path.is_file() and name != MANIFEST:
            files[name] = file_digest(path)
    return canonical_json({"files": files})


def verify(folder: Path, digest: str) -> None:
    """Raises `BadArtifact` unless `folder` holds exactly the files of its manifest, and that is the one named."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise missing(digest) from None
    if sha256(manifest) != digest:
        raise BadArtifact(f"artifact {digest[:8]}: its manifest is not the one that was published")
    found, listed = json.loads(manifest_of(folder))["files"], json.loads(manifest)["files"]
    if found != listed:
        wrong = sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
        raise BadArtifact(f"artifact {digest[:8]}: altered, missing or added: {', '.join(wrong[:5])}")


def missing(digest: str) -> NotYet:
    return NotYet(f"artifact {digest[:8]} is not there: not complete yet, or collected as garbage")


class LocalArtifactStore:
    """`ArtifactStore` on a folder that all services see."""

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root).resolve()

    def put(self, folder: Path) -> tuple[str, str]:
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
        must_name(uri, digest)
        verify(self._root / digest, digest)
        return self._root / digest

    @contextmanager
    def held(self, uri: str, digest: str) -> Iterator[Path]:
        must_name(uri, digest)
        with self._lock(digest, fcntl.LOCK_SH):
            yield self.fetch(uri, digest)

    def stored(self) -> list[Stored]:
        found = []
        for path in sorted(self._root.glob(f"*/{MANIFEST}")):
            with suppress(FileNotFoundError):  # collected meanwhile
                found += [_stored(path)] if not path.parent.name.startswith(".") else []
        return found

    def discard(self, digest: str, unless: Callable[[Stored], bool] = lambda _: False) -> bool:
        try:
            with self._lock(digest, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if unless(_stored(self._root / digest / MANIFEST)):
                    return False
                going = Path(tempfile.mkdtemp(prefix=GOING, dir=self._root))
                (self._root / digest).rename(going / digest)
        except (NotYet, BlockingIOError):
            return False
        shutil.rmtree(going, ignore_errors=True)
        return True

    def sweep(self, before_ms: int) -> int:
        left = [path for prefix in (GOING, INCOMING) for path in self._root.glob(f"{prefix}*")]
        left += [path for path in self._root.glob("*") if path.is_dir() and not (path / MANIFEST).exists()]
        old = [path for path in dict.fromkeys(left) if _mtime_ms(path) < before_ms]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        return len(old)

    def renew(self, digest: str) -> bool:
        """Whether it is there; then it is as young as if it had been put now, so that no collector takes it that looks
        later."""
        try:
            with self._lock(digest, fcntl.LOCK_SH):
                os.utime(self._root / digest / MANIFEST)
                return True
        except NotYet:
            return False

    @contextmanager
    def _lock(self, digest: str, kind: int) -> Iterator[IO[bytes]]:
        """Holds the artifact. Raises `NotYet` where it is not there, also if it went while this waited for it."""
        path = self._root / digest / MANIFEST
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise missing(digest) from None
        with file:
            fcntl.flock(file, kind)
            try:
                there = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                there = False
            if not there:
                raise missing(digest)
            yield file

    def adopt(self, staged: Path, digest: str) -> None:
        """Gives a complete folder on the same disk its name, unless another was faster."""
        target = self._root / digest
        try:
            staged.rename(target)
        except OSError:
            if not (target / MANIFEST).exists():
                raise


def _stored(manifest: Path) -> Stored:
    size = sum(one.stat().st_size for one in manifest.parent.rglob("*") if one.is_file())
    return Stored(manifest.parent.name, round(manifest.stat().st_mtime * 1000), size)


def copy_whole(source: Path, target: Path, manifest: bytes) -> None:
    """All files, then the manifest, all of it on the disk when this returns."""
    shutil.copytree(source, target)
    (target / MANIFEST).write_bytes(manifest)
    for path in target.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _mtime_ms(path: Path) -> float:
    try:
        return path.stat().st_mtime * 1000
    except FileNotFoundError:
        return float("inf")
