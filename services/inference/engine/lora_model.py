"""The base model in memory, and versions of it as LoRA adapters. Only the engine's thread uses it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import structlog
import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraModel as PeftLoraModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteriaList,
)

from services.inference.core.generation_request import Sampling
from services.inference.engine.batch_streamer import BatchStreamer
from services.inference.engine.batching import BatchRow
from services.inference.engine.chat_tokenizer import ChatTokenizer
from shared.errors import BadArtifact, Misconfigured
from shared.events import Message

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
WEIGHT_PREFIX = "base_model.model."
"""peft's prefix of the name of every weight in an adapter file."""
SMOKE_TEST_MESSAGES = (Message(role="user", content="Say hello."),)
SMOKE_TEST_TOKENS = 4
WARM_UP_ROWS, WARM_UP_TOKENS = 4, 2
log = structlog.get_logger(__name__)


class LoraModel:
    """One base model and its LoRA adapters by version name; the version None is the base.

    Not thread-safe: one thread creates it and makes all calls. Adapters are never merged into the base: merging and
    unmerging in bfloat16 would change the base's weights.

    Args:
        folder: Files of the base model.
        tokenizer: Its tokenizer.
        device: `auto`, `cpu` or `cuda`.
        dtype: Name of the torch type to compute in.
        threads: Threads of torch.

    Raises:
        Misconfigured: if the base model cannot be loaded.

    """

    def __init__(
        self, folder: Path, tokenizer: ChatTokenizer, *, device: str, dtype: str, threads: int = 1
    ) -> None:
        torch.set_num_threads(threads)
        self._tokenizer = tokenizer
        self._device = pick_device(device)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise Misconfigured(f"the base model in {folder} cannot be loaded: {error}") from error
        self._model: PreTrainedModel = model.to(self._device)  # type: ignore[arg-type]
        self._model.eval()
        self.eos_token_ids = tokenizer.eos_token_ids | _token_ids(self._model.generation_config.eos_token_id)
        # Replaces the sampling defaults in the base's files, which would apply to requests that set none.
        self._model.generation_config = _generation_config(
            eos_token_id=sorted(self.eos_token_ids), pad_token_id=tokenizer.pad_token_id
        )
        self._peft: PeftModel | None = None
        self._adapter_names: dict[str, str] = {}
        self._adapters_loaded = 0
        self._active_adapter: str | None = None

    def load(self, version: str, folder: Path) -> None:
        """Load the adapter in `folder`, whose files have been verified.

        Raises:
            BadArtifact: if the adapter does not fit the base. Then nothing has changed.

        """
        config, weights = read_adapter(folder)
        self._check_fit(version, weights)
        self._adapters_loaded += 1
        # peft derives module names from it, and a version name may have characters that they must not have.
        name = f"a{self._adapters_loaded}"
        try:
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
            result: Any = set_peft_model_state_dict(self._peft, weights, adapter_name=name)
            mismatched = [key for key in result.missing_keys if f".{name}." in key]
            mismatched += list(result.unexpected_keys)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            self._delete_adapter(name)
            raise BadArtifact(f"{version}: {error}") from error
        if mismatched:
            self._delete_adapter(name)
            raise BadArtifact(
                f"{version}: {WEIGHTS_FILE} and {CONFIG_FILE} disagree about {', '.join(mismatched[:3])}"
            )
        self._adapter_names[version] = name
        self._model.eval()  # type: ignore[no-untyped-call]
        self._activate(None)

    def unload(self, version: str) -> None:
        """Free the adapter's memory. A version that is not loaded is ignored."""
        name = self._adapter_names.pop(version, None)
        if name is not None:
            self._delete_adapter(name)

    @torch.no_grad()
    def smoke_test(self, version: str | None) -> None:
        """Generate one short greedy answer.

        Raises:
            BadArtifact: if a logit is not finite, or the answer has no tokens.

        """
        self._activate(version)
        prompt = self._tokenizer.encode(SMOKE_TEST_MESSAGES)
        inputs = torch.tensor([prompt], device=self._device)
        if not bool(torch.isfinite(self._model(input_ids=inputs).logits).all()):
            raise BadArtifact(f"{version}: the model's output has values that are not finite")
        output = self._generate([prompt], Sampling(), SMOKE_TEST_TOKENS, StoppingCriteriaList())
        if all(token in self.eos_token_ids for token in output[0, len(prompt) :].tolist()):
            raise BadArtifact(f"{version}: the answer to {SMOKE_TEST_MESSAGES[0].content!r} is empty")

    @torch.no_grad()
    def warm_up(self, version: str | None) -> None:
        """Run one small batch, so that no request pays for lazy initialisation."""
        self._activate(version)
        prompt = self._tokenizer.encode(SMOKE_TEST_MESSAGES)
        self._generate([prompt] * WARM_UP_ROWS, Sampling(), WARM_UP_TOKENS, StoppingCriteriaList())

    @torch.no_grad()
    def generate(self, version: str | None, rows: Sequence[BatchRow], sampling: Sampling) -> None:
        """Generate until every row has finished, pushing each token to its row."""
        self._activate(version)
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        self._generate(
            [row.generation.prompt for row in rows],
            sampling,
            max(row.generation.max_tokens for row in rows),
            StoppingCriteriaList([BatchStreamer(rows, self.eos_token_ids)]),
        )

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        max_new_tokens: int,
        stopping_criteria: StoppingCriteriaList,
    ) -> torch.Tensor:
        """Pad the prompts on the left and return token ids, (batch, longest prompt + new tokens)."""
        width = max(len(prompt) for prompt in prompts)
        padding = self._tokenizer.pad_token_id
        input_ids = torch.tensor(
            [[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=self._device
        )
        attention_mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self._device
        )
        sampling_options = (
            {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            if sampling.temperature > 0
            else {"do_sample": False}
        )
        config = _generation_config(
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(self.eos_token_ids),
            pad_token_id=padding,
            use_cache=True,
            **sampling_options,
        )
        generate = cast(Callable[..., torch.Tensor], self._model.generate)
        return generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            stopping_criteria=stopping_criteria,
        )

    def _activate(self, version: str | None) -> None:
        """Let the version compute from now on."""
        if self._peft is None:
            return
        name = None if version is None else self._adapter_names[version]
        if name is None:
            self._tuner().disable_adapter_layers()
        elif name != self._active_adapter:
            self._tuner().enable_adapter_layers()
            self._peft.set_adapter(name, inference_mode=True)
        self._active_adapter = name

    def _tuner(self) -> PeftLoraModel:
        assert self._peft is not None
        return cast(PeftLoraModel, self._peft.base_model)

    def _delete_adapter(self, name: str) -> None:
        """Remove an adapter from the model.

        Another adapter is activated first: peft keeps referring to a deleted active adapter and fails at its next
        use. With the last adapter all LoRA layers are removed, which restores the plain base.
        """
        if self._peft is None or name not in self._peft.peft_config:
            return
        others = [other for other in self._peft.peft_config if other != name]
        self._active_adapter = None
        if others:
            self._tuner().enable_adapter_layers()
            self._peft.set_adapter(others[0], inference_mode=True)
            self._peft.delete_adapter(name)
            self._tuner().disable_adapter_layers()
            return
        self._model = cast(PreTrainedModel, self._tuner().unload())
        self._peft = None
        if hasattr(self._model, "peft_config"):
            del self._model.peft_config

    def _check_fit(self, version: str, weights: dict[str, torch.Tensor]) -> None:
        """Raise `BadArtifact` unless every weight is finite and fits a linear layer of this base.

        LoRA's A is (rank, in_features), B is (out_features, rank).
        """
        for key, weight in weights.items():
            layer_name, _, rest = key.removeprefix(WEIGHT_PREFIX).partition(".lora_")
            side = rest.partition(".")[0]
            if side not in {"A", "B"} or not key.startswith(WEIGHT_PREFIX):
                raise BadArtifact(f"{version}: {key} is not a LoRA weight of a linear layer")
            try:
                layer = self._model.get_submodule(layer_name)
            except AttributeError:
                raise BadArtifact(
                    f"{version} was trained on another base: this base has no layer {layer_name}"
                ) from None
            expected = layer.in_features if side == "A" else layer.out_features
            actual = weight.shape[1] if side == "A" else weight.shape[0]
            if actual != expected:
                raise BadArtifact(
                    f"{version} was trained on another base: "
                    f"{key} has {actual} features, this base has {expected}"
                )
            if not bool(torch.isfinite(weight).all()):
                raise BadArtifact(f"{version}: {key} has values that are not finite")


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


def _generation_config(**values: Any) -> GenerationConfig:
    return GenerationConfig(**values)  # type: ignore[no-untyped-call]
