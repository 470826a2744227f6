"""The pinned base model of a line: finds its files and computes the digest that names it, without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.adapters.artifact_manifest import file_digest
from shared.errors import Misconfigured
from shared.events import canonical_json, sha256
from shared.versions import VersionRef, version_name

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
"""Weights, configuration and tokenizer. Formats that can carry code are left out."""
MODEL_CARD = "README.md"
"""States the licence. It is fetched with the model, but is not part of the digest."""


@dataclass(frozen=True, slots=True)
class PinnedBase:
    """Files of a base model. `name` is its Hugging Face id or folder name; `digest` covers all `MODEL_FILES`."""

    path: Path
    name: str
    digest: str

    def ref(self, line: str) -> VersionRef:
        """Return the reference to the base as a version of `line`."""
        return VersionRef(version=version_name(line, None, self.digest), kind="base", digest=self.digest)


def find_base(model: str) -> PinnedBase:
    """Return the base model, fetching it into the Hugging Face cache if it is not a local folder.

    Args:
        model: A local folder or a Hugging Face id.

    Raises:
        Misconfigured: if `model` is empty, cannot be fetched, or has no safetensors weights.

    """
    if not model:
        raise Misconfigured(
            "LOOPWRIGHT_BASE_MODEL is not set: set it to a local folder or the Hugging Face id of a causal LM"
        )
    folder = Path(model) if Path(model).is_dir() else _download(model)
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise Misconfigured(f"{model} has no safetensors weights; other formats are not accepted")
    digest = sha256(canonical_json({path.name: file_digest(path) for path in files}))
    return PinnedBase(folder.resolve(), Path(model).name if Path(model).is_dir() else model, digest)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only needed for Hugging Face ids
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(model, allow_patterns=[*MODEL_FILES, MODEL_CARD]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise Misconfigured(
            f"LOOPWRIGHT_BASE_MODEL: {model} is not a local folder, and it cannot be fetched: {error}"
        ) from error
