"""The pinned base: where its files are, and the digest that names it. Never loads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.adapters.artifact_manifest import file_digest
from shared.errors import Misconfigured
from shared.events import canonical_json, sha256
from shared.versions import VersionRef, version_name

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
"""What makes a model: weights as safetensors, configuration, tokenizer. Nothing that can carry code."""
CARD = "README.md"
"""Says its licence; no part of the model, so no part of its digest."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    path: Path
    name: str
    digest: str

    def ref(self, line: str) -> VersionRef:
        """The base as a version of `line`."""
        return VersionRef(version=version_name(line, None, self.digest), kind="base", digest=self.digest)


def find_base(model: str) -> BaseModel:
    """`model` is a folder or a Hugging Face id (fetched into the hub's cache). Raises `Misconfigured`."""
    if not model:
        raise Misconfigured(
            "LOOPWRIGHT_BASE_MODEL is not set: a local folder or a Hugging Face id of a causal LM"
        )
    folder = Path(model) if Path(model).is_dir() else _download(model)
    files = sorted({path for pattern in PATTERNS for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise Misconfigured(f"{model}: no safetensors weights in it; other formats are refused")
    digest = sha256(canonical_json({path.name: file_digest(path) for path in files}))
    return BaseModel(folder.resolve(), Path(model).name if Path(model).is_dir() else model, digest)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only where a hub id is used
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(model, allow_patterns=[*PATTERNS, CARD]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise Misconfigured(
            f"{model} is neither a local folder nor a model that could be fetched: {error}"
        ) from error
