"""The artifact store on a local folder: immutable, content-addressed, verified on every read.

Layout: `<root>/<digest>/` holds the files and, written last, `manifest.json`: {"files": {name: sha256}}. The digest
is the sha256 of the manifest, so one value names and verifies the whole. What has no manifest is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from shared.errors import BadArtifact, NotYet
from shared.events import canonical_json, sha256

MANIFEST = "manifest.json"
REFUSED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so"})
"""Weights are safetensors; anything that can carry code is refused."""


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
        raise NotYet(f"artifact {digest[:8]} is not there, or not complete yet") from None
    if sha256(manifest) != digest:
        raise BadArtifact(f"artifact {digest[:8]}: its manifest is not the one that was published")
    found, listed = json.loads(manifest_of(folder))["files"], json.loads(manifest)["files"]
    if found != listed:
        wrong = sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
        raise BadArtifact(f"artifact {digest[:8]}: altered, missing or added: {', '.join(wrong[:5])}")


class LocalArtifactStore:
    """`ArtifactStore` on a folder that all services see."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def put(self, folder: Path) -> tuple[str, str]:
        manifest = manifest_of(folder)
        digest = sha256(manifest)
        target = self._root / digest
        if not (target / MANIFEST).exists():
            self._root.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self._root))
            try:
                self._copy(folder, staging / "files", manifest)
                self._move(staging / "files", target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return f"artifact:{digest}", digest

    def fetch(self, uri: str, digest: str) -> Path:
        if uri != f"artifact:{digest}":
            raise BadArtifact(f"{uri} does not name the digest {digest[:8]} that was published with it")
        verify(self._root / digest, digest)
        return self._root / digest

    @staticmethod
    def _copy(source: Path, target: Path, manifest: bytes) -> None:
        shutil.copytree(source, target)
        (target / MANIFEST).write_bytes(manifest)
        for path in target.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    @staticmethod
    def _move(staged: Path, target: Path) -> None:
        try:
            staged.rename(target)
        except OSError:
            if not (target / MANIFEST).exists():
                raise
