"""The base model in memory, and versions of it as merged copies. Only the engine's thread uses it. Imports torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import structlog
import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from services.inference.engine.adapter_files import CONFIG_FILE, WEIGHTS_FILE, layer_and_side
from services.inference.engine.data_type import choose_dtype
from services.inference.engine.memory import free_bytes
from services.inference.engine.paged_attention import attention_for
from shared.adapter_merge import copy_sharing_weights, merge_adapter
from shared.errors import BadArtifact, Misconfigured, Retryable

ADAPTER = "default"
"""Name of the adapter while it is being merged."""
RESERVE = 1.25
"""A version is loaded only if this many times its memory is free."""
log = structlog.get_logger(__name__)


class VersionModels:
    """One base model and its versions by name, each a model of its own that shares unchanged weights with the base.

    Not thread-safe: one thread creates it and makes all calls.

    Args:
        folder: Files of the base model.
        base: Version name of the base.
        device: `auto`, `cpu` or `cuda`.
        dtype: Name of the torch type to compute in, or `auto` (`data_type.py`).
        threads: Threads of torch.

    Raises:
        Misconfigured: if the base model cannot be loaded.

    """

    def __init__(self, folder: Path, base: str, *, device: str, dtype: str, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.device = pick_device(device)
        chosen = choose_dtype(dtype, folder, self.device)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=chosen,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
            model.set_attn_implementation(attention_for(model))
        except (OSError, ValueError, RuntimeError) as error:
            raise Misconfigured(f"the base model in {folder} cannot be loaded: {error}") from error
        self.base: PreTrainedModel = model.to(self.device).eval()  # type: ignore[arg-type]
        self.eos_token_ids = _token_ids(self.base.generation_config.eos_token_id)
        # The sampling defaults in the base's files would apply to requests that set none.
        self.base.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        self._base_name = base
        self._models: dict[str, PreTrainedModel] = {base: self.base}
        log.info("base_loaded", base=base, device=self.device, dtype=str(chosen).removeprefix("torch."))

    def model_of(self, version: str) -> PreTrainedModel:
        """Return the model of a version in memory."""
        return self._models[version]

    def versions(self) -> tuple[str, ...]:
        """Return the versions in memory."""
        return tuple(self._models)

    def load(self, version: str, folder: Path) -> Iterator[None]:
        """Merge the adapter in `folder`, whose files have been verified, layer by layer.

        Each step of the iterator takes some milliseconds. The version is in memory after the last one; until then,
        nothing has changed.

        Raises:
            BadArtifact: if the adapter does not fit the base.
            Retryable: if there is too little memory for the version.

        """
        if version in self._models:
            return
        config, weights = read_adapter(folder)
        self._check_fit(version, weights)
        self._require_memory(version, weights)
        yield
        model = copy_sharing_weights(self.base)
        yield
        try:
            # Not with `low_cpu_mem_usage`, which rounds the adapter's weights to the type of the base's.
            adapted = PeftModel(model, config, adapter_name=ADAPTER)
            result: Any = set_peft_model_state_dict(adapted, weights, adapter_name=ADAPTER)
            mismatched = [key for key in result.missing_keys if f".{ADAPTER}." in key]
            mismatched += list(result.unexpected_keys)
            if mismatched:
                raise BadArtifact(
                    f"{version}: {WEIGHTS_FILE} and {CONFIG_FILE} disagree about {', '.join(mismatched[:3])}"
                )
            yield
            with torch.no_grad():
                for _ in merge_adapter(adapted, ADAPTER):
                    yield
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
                raise Retryable(f"{version}: too little memory to load it: {error}") from error
            raise BadArtifact(f"{version}: {error}") from error
        self._models[version] = cast(
            PreTrainedModel, cast(LoraModel, adapted.base_model).unload()
        ).requires_grad_(False)

    def unload(self, version: str) -> None:
        """Free the version's memory. The base, and a version that is not in memory, are ignored."""
        if version != self._base_name:
            self._models.pop(version, None)

    def _check_fit(self, version: str, weights: dict[str, torch.Tensor]) -> None:
        """Raise `BadArtifact` unless every weight is finite and fits a linear layer of this base.

        LoRA's A is (rank, in_features), B is (out_features, rank).
        """
        for key, weight in weights.items():
            layer_name, side = layer_and_side(version, key)
            layer = self._layer(version, layer_name)
            expected = layer.in_features if side == "A" else layer.out_features
            actual = weight.shape[-1] if side == "A" else weight.shape[0]
            if actual != expected:
                raise BadArtifact(
                    f"{version} was trained on another base: "
                    f"{key} has {actual} features, this base has {expected}"
                )
            if not bool(torch.isfinite(weight).all()):
                raise BadArtifact(f"{version}: {key} has values that are not finite")

    def _layer(self, version: str, name: str) -> torch.nn.Linear:
        try:
            layer = self.base.get_submodule(name)
        except AttributeError:
            layer = None
        if not isinstance(layer, torch.nn.Linear):
            raise BadArtifact(f"{version} was trained on another base: this base has no linear layer {name}")
        return layer

    def _require_memory(self, version: str, weights: dict[str, torch.Tensor]) -> None:
        """Raise `Retryable` if the layers that the adapter changes do not fit into the free memory once more."""
        names = {layer_and_side(version, key)[0] for key in weights}
        layers = [self._layer(version, name) for name in names]
        needed = int(RESERVE * sum(layer.weight.numel() * layer.weight.element_size() for layer in layers))
        free = free_bytes(self.device)
        if needed > free:
            raise Retryable(
                f"{version} needs {needed >> 20} MiB of memory, but {free >> 20} MiB are free; "
                "set LOOPWRIGHT_INFERENCE_KV_CACHE_MB lower or give this replica more memory"
            )


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Read an adapter's configuration and its weights by name, from safetensors only.

    Raises:
        BadArtifact: if it cannot be read, or is anything but a LoRA adapter of linear layers.

    """
    try:
        peft_type = json.loads((folder / CONFIG_FILE).read_bytes()).get("peft_type")
        if peft_type != "LORA":
            raise BadArtifact(f"{CONFIG_FILE}: peft_type is {peft_type}; only LORA can be served")
        config = LoraConfig.from_pretrained(str(folder), local_files_only=True)
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise BadArtifact(f"the adapter cannot be read: {error}") from error
    if config.modules_to_save or getattr(config, "trainable_token_indices", None):
        raise BadArtifact(
            f"{CONFIG_FILE}: the adapter replaces whole layers (modules_to_save); only LoRA weights can be served"
        )
    if not weights:
        raise BadArtifact(f"{WEIGHTS_FILE} has no weights")
    # The initialisation only matters for training, and some kinds read files or the base's weights.
    config.init_lora_weights = True
    config.inference_mode = True
    return config, weights


def pick_device(setting: str) -> str:
    """Return the torch device for the setting: `auto` is the GPU if there is one."""
    if setting != "auto":
        return setting
    return "cuda" if torch.cuda.is_available() else "cpu"


def _token_ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
