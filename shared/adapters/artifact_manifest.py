"""Manifests of artifacts: immutable folders of files, named by the digest of their manifest.

Layout of an artifact: its files and, written last, `manifest.json`: {"files": {name: sha256}}. The digest of the
artifact is the sha256 of the manifest, so one value names and verifies all of it. A folder without a manifest is not
an artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from shared.errors import BadArtifact, NotYet
from shared.events import canonical_json, sha256

MANIFEST = "manifest.json"
LINEAGE_FILE = "loopwright.json"
"""File of a version that says how it was made: run, base, dataset, recipe, arguments of the chat template."""
REFUSED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so"})
"""File types that an artifact may not contain, because they can carry code. Weights are safetensors."""
INCOMING = ".incoming-"
"""Prefix of temporary folders in which artifacts are assembled."""


def uri_of(digest: str) -> str:
    """Return the URI of an artifact. It does not depend on where the store is."""
    return f"artifact:{digest}"


def check_uri(uri: str, digest: str) -> None:
    """Raise `BadArtifact` unless `uri` is the URI of `digest`."""
    if uri != uri_of(digest):
        raise BadArtifact(f"{uri} does not name the digest {digest[:8]} that was published with it")


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_of(folder: Path) -> bytes:
    """Return the canonical manifest of all files below `folder`.

    Raises:
        BadArtifact: for links, hidden files and file types in `REFUSED`.

    """
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or any(part.startswith(".") for part in Path(name).parts):
            raise BadArtifact(f"{name}: an artifact may not contain links or hidden files")
        if path.suffix in REFUSED:
            raise BadArtifact(
                f"{name}: an artifact may not contain {path.suffix} files; save weights as safetensors"
            )
        if path.is_file() and name != MANIFEST:
            files[name] = file_digest(path)
    return canonical_json({"files": files})


def verify(folder: Path, digest: str) -> None:
    """Verify that `folder` holds exactly the files of its manifest, and that the manifest has this digest.

    Raises:
        NotYet: if there is no manifest.
        BadArtifact: if anything differs.

    """
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
    """Return the error for an artifact that is not in the store."""
    return NotYet(
        f"artifact {digest[:8]} is not in the store: it is incomplete, or was removed by garbage collection"
    )


def copy_whole(source: Path, target: Path, manifest: bytes) -> None:
    """Copy all files, then write the manifest; everything is on disk when this returns."""
    shutil.copytree(source, target)
    (target / MANIFEST).write_bytes(manifest)
    for path in target.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
