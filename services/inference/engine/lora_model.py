"""The base model in memory, with versions beside it as LoRA adapters. All of it belongs to the engine's one
thread."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteriaList

from services.inference.core.generation_request import BatchRow, Sampling
from services.inference.engine.batch_streamer import BatchStreamer
from services.inference.engine.chat_tokenizer import ChatTokenizer
from shared.errors import BadArtifact, Misconfigured

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
SMOKE = "Say hello."
SMOKE_TOKENS = 4
WARM_ROWS = 4
log = structlog.get_logger(__name__)


class LoraModel:
    """One base and its adapters by version name. Not thread-safe: the thread that makes it does all of its
    work.

    The base's own weights are never changed (no merging: in bfloat16, merging and unmerging leaves another
    base).
    """

    def __init__(
        self, folder: Path, prompts: ChatTokenizer, *, device: str, dtype: str, threads: int = 1
    ) -> None:
        torch.set_num_threads(threads)
        self._prompts = prompts
        self._device = pick_device(device)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise Misconfigured(f"the base model in {folder} cannot be loaded: {error}") from error
        self._model: Any = model.to(self._device).eval()
        self.eos = frozenset(prompts.eos) | _ids(self._model.generation_config.eos_token_id)
        # What the base's files say about sampling would otherwise leak into requests that say nothing.
        self._model.generation_config = _generation_config(
            eos_token_id=sorted(self.eos), pad_token_id=prompts.pad
        )
        self._peft: PeftModel | None = None
        self._names: dict[str, str] = {}
        self._made = 0
        self._active: str | None = None

    def load(self, version: str, folder: Path) -> None:
        """Adds the adapter in `folder` (files already verified). Raises `BadArtifact`, and then nothing has
        changed."""
        config, state = read_adapter(folder)
        self._must_fit(version, state)
        self._made += 1
        name = f"a{self._made}"  # peft names modules by it: no character of a version name can go wrong
        try:
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
            result: Any = set_peft_model_state_dict(self._peft, state, adapter_name=name)
            unmet = [key for key in result.missing_keys if f".{name}." in key] + list(result.unexpected_keys)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            self._drop(name)
            raise BadArtifact(f"{version}: {error}") from error
        if unmet:
            self._drop(name)
            raise BadArtifact(f"{version}: its weights and its {CONFIG} differ in {', '.join(unmet[:3])}")
        self._names[version] = name
        self._model.eval()
        self._use(None)

    def unload(self, version: str) -> None:
        """Frees the adapter's memory; the base and the others stay as they are."""
        name = self._names.pop(version, None)
        if name is not None:
            self._drop(name)

    @torch.no_grad()
    def smoke(self, version: str | None) -> None:
        """One short greedy answer. Raises `BadArtifact` unless its numbers are finite and it says
        something."""
        self._use(version)
        prompt = self._prompts.tokens([("user", SMOKE)])
        inputs = torch.tensor([prompt], device=self._device)
        if not bool(torch.isfinite(self._model(input_ids=inputs).logits).all()):
            raise BadArtifact(f"{version}: answers with numbers that are not finite")
        made = self._generate([prompt], Sampling(), SMOKE_TOKENS, StoppingCriteriaList())
        said = [token for token in made[0, len(prompt) :].tolist() if token not in self.eos]
        if not said:
            raise BadArtifact(f"{version}: says nothing to {SMOKE!r}")

    @torch.no_grad()
    def warm(self, version: str | None) -> None:
        """One small batch, so that the first user does not pay for what is set up lazily."""
        self._use(version)
        prompt = self._prompts.tokens([("user", SMOKE)])
        self._generate([prompt] * WARM_ROWS, Sampling(), 2, StoppingCriteriaList())

    @torch.no_grad()
    def generate(self, version: str | None, rows: Sequence[BatchRow], sampling: Sampling) -> None:
        """One batch to its end; each row hears of its tokens as they come."""
        self._use(version)
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        stops = StoppingCriteriaList([BatchStreamer(rows, self.eos)])
        self._generate(
            [row.ask.prompt for row in rows], sampling, max(row.ask.max_tokens for row in rows), stops
        )

    def _generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, tokens: int, stops: StoppingCriteriaList
    ) -> torch.Tensor:
        """Left-padded prompts -> (rows, longest prompt + new) token ids."""
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor(
            [[self._prompts.pad] * (width - len(p)) + list(p) for p in prompts], device=self._device
        )
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        chance = (
            {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            if sampling.temperature > 0
            else {"do_sample": False}
        )
        config = _generation_config(
            max_new_tokens=tokens,
            eos_token_id=sorted(self.eos),
            pad_token_id=self._prompts.pad,
            use_cache=True,
            **chance,
        )
        made: torch.Tensor = self._model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, stopping_criteria=stops
        )
        return made

    def _use(self, version: str | None) -> None:
        """Makes the version the one that computes; None is the base."""
        if self._peft is None:
            return
        name = None if version is None else self._names[version]
        if name is None:
            self._tuner().disable_adapter_layers()
        elif name != self._active:
            self._tuner().enable_adapter_layers()
            self._peft.set_adapter(name, inference_mode=True)
        self._active = name

    def _tuner(self) -> Any:
        assert self._peft is not None
        return self._peft.base_model

    def _drop(self, name: str) -> None:
        """Another adapter is made active first: peft goes on naming a deleted one, and fails at its next use.
        The last one is taken off with all of its layers, which leaves the plain base."""
        if self._peft is None or name not in self._peft.peft_config:
            return
        others = [other for other in self._peft.peft_config if other != name]
        self._active = None
        if others:
            self._tuner().enable_adapter_layers()
            self._peft.set_adapter(others[0], inference_mode=True)
            self._peft.delete_adapter(name)
            self._tuner().disable_adapter_layers()
            return
        self._model = self._tuner().unload()
        self._peft = None
        if hasattr(self._model, "peft_config"):
            del self._model.peft_config

    def _must_fit(self, version: str, state: dict[str, torch.Tensor]) -> None:
        """Before anything is touched: every weight has its layer in this base, in its shape, and is finite."""
        for key, value in state.items():
            layer, _, part = key.removeprefix(PREFIX).partition(".lora_")
            side = part.partition(".")[0]
            if side not in {"A", "B"} or not key.startswith(PREFIX):
                raise BadArtifact(f"{version}: {key} is not a LoRA weight of a linear layer")
            try:
                found = self._model.get_submodule(layer)
            except AttributeError:
                raise BadArtifact(
                    f"{version}: this base has no layer {layer}; it was made for another base"
                ) from None
            size = found.in_features if side == "A" else found.out_features
            have = value.shape[1] if side == "A" else value.shape[0]
            if size != have:
                raise BadArtifact(
                    f"{version}: {key} has {have} where this base has {size}; it was made for another base"
                )
            if not bool(torch.isfinite(value).all()):
                raise BadArtifact(f"{version}: {key} holds numbers that are not finite")


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """An adapter's configuration and weights, from safetensors only. Raises `BadArtifact`."""
    try:
        kind = json.loads((folder / CONFIG).read_bytes()).get("peft_type")
        if kind != "LORA":
            raise BadArtifact(f"{CONFIG}: an adapter of kind {kind}; only LORA is served")
        config = LoraConfig.from_pretrained(str(folder), local_files_only=True)
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise BadArtifact(f"the adapter cannot be read: {error}") from error
    if config.modules_to_save or getattr(config, "trainable_token_indices", None):
        raise BadArtifact(
            f"{CONFIG}: it replaces whole layers (modules_to_save); only LoRA weights are served"
        )
    if not state:
        raise BadArtifact(f"{WEIGHTS} is empty")
    # How weights were drawn before training is no matter here, and some ways read files or the base.
    config.init_lora_weights = True
    config.inference_mode = True
    return config, state


def pick_device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def _ids(value: int | list[int] | None) -> frozenset[int]:
    return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)


def _generation_config(**values: Any) -> GenerationConfig:
    return GenerationConfig(**values)  # type: ignore[no-untyped-call]
