"""Open the artifact store that `LOOPWRIGHT_ARTIFACTS` names: a folder, or a URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from shared.adapters.artifacts_local import LocalArtifactStore
from shared.errors import Misconfigured
from shared.ports import ArtifactStore


def open_artifacts(place: str | Path, cache: Path) -> ArtifactStore:
    """Return the store at a folder, or at a URL that fsspec supports (`s3://bucket/prefix`).

    `cache` is the folder in which artifacts from a URL are kept for reading. Credentials come from the environment.

    Raises:
        Misconfigured: if the URL contains credentials, or its protocol is not installed.

    """
    location = str(place)
    if "://" not in location:
        return LocalArtifactStore(Path(location))
    parts = urlsplit(location)
    if parts.scheme == "file":
        return LocalArtifactStore(Path(parts.path))
    if "@" in parts.netloc:
        raise Misconfigured(
            "LOOPWRIGHT_ARTIFACTS contains credentials, which would appear in logs: pass them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role)"
        )
    from shared.adapters.artifacts_remote import open_remote  # noqa: PLC0415 - imports fsspec, needed only for URLs

    return open_remote(location, cache)
