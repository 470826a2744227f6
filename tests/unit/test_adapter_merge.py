"""Versions as merged copies of the base: what they compute, what they share, and what they leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from services.inference.engine.version_models import VersionModels
from services.trainer.gate.model_pair import ModelPair
from services.trainer.gate.stage import merges_adapters
from shared.adapter_merge import copy_sharing_weights, merge_adapter
from tests.inference_factories import BASE, make_adapter

PROMPT = torch.randint(100, 40_000, (2, 24), generator=torch.Generator().manual_seed(1))


def base_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval().requires_grad_(False)


def adapted(model: PreTrainedModel, **options: Any) -> PeftModel:
    """Return the model with a random adapter, which changes its answers."""
    torch.manual_seed(5)
    config = LoraConfig(**({"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]} | options))
    peft = PeftModel(model, config).eval()
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    return peft


def merged(base: PreTrainedModel, **options: Any) -> PreTrainedModel:
    peft = adapted(copy_sharing_weights(base), **options)
    with torch.no_grad():
        for _ in merge_adapter(peft, "default"):
            pass
    model: PreTrainedModel = peft.base_model.unload()  # type: ignore[operator]
    return model


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=PROMPT).logits
    return result


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all_linear": {"target_modules": "all-linear"},
    "rank_stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"down_proj": 3}},
    "tied_head": {"target_modules": ["q_proj", "lm_head"]},
    "dora": {"use_dora": True},
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_merged_version_computes_what_the_adapter_does(tiny_model: Path, options: dict[str, Any]) -> None:
    """In float32, to 1e-4 of the largest logit: only the order of additions differs."""
    base = base_model(tiny_model, torch.float32)
    before = logits(base)
    result = logits(merged(base, **options))
    assert torch.equal(logits(base), before)
    unmerged = logits(adapted(base, **options))
    assert float((unmerged - before).abs().max()) > 0.1
    assert float((result - unmerged).abs().max()) < 1e-4 * float(unmerged.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merged_weights_are_the_exact_sum_rounded_once(tiny_model: Path, dtype: torch.dtype) -> None:
    base = base_model(tiny_model, dtype)
    version = merged(base)
    peft = adapted(copy_sharing_weights(base))
    name = "model.layers.1.self_attn.q_proj"
    layer: Any = peft.get_submodule(f"base_model.model.{name}")
    exact = base.get_submodule(name).weight.float() + layer.get_delta_weight("default").float()
    weight = version.get_submodule(name).weight
    assert weight.dtype == dtype
    assert torch.equal(weight, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_version_shares_all_weights_that_it_does_not_change(tiny_model: Path, dtype: torch.dtype) -> None:
    base = base_model(tiny_model, dtype)
    addresses = {name: tensor.data_ptr() for name, tensor in base.named_parameters()}
    before = {name: tensor.clone() for name, tensor in base.named_parameters()}
    own = {
        name.rsplit(".", 2)[1]
        for name, tensor in merged(base).named_parameters()
        if tensor.data_ptr() != addresses[name]
    }
    assert own == {"q_proj", "down_proj"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.named_parameters())


def test_weights_that_are_not_finite_are_refused(tiny_model: Path) -> None:
    base = base_model(tiny_model, torch.bfloat16)
    peft = adapted(copy_sharing_weights(base))
    with torch.no_grad():
        peft.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default").weight[0] = 1e38
        peft.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default").weight[:] = 1e38
    with torch.no_grad(), pytest.raises(ValueError, match="NaN"):
        list(merge_adapter(peft, "default"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gate_scores_the_weights_that_inference_serves(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    folders = {
        f"assistant@v{number}-00000000": make_adapter(tiny_model, tmp_path / f"v{number}", number)
        for number in (1, 2)
    }
    served = VersionModels(tiny_model, BASE.version, device="cpu", dtype=dtype)
    for version, folder in folders.items():
        list(served.load(version, folder))
    base = base_model(tiny_model, getattr(torch, dtype))
    candidate, stable = folders
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    with ModelPair(base, {"candidate": folders[candidate], "stable": folders[stable]}, merged=True) as pair:
        for side, version in (("candidate", candidate), ("stable", stable), ("base", BASE.version)):
            with pair.activate(side) as model:  # type: ignore[arg-type]
                gated = model.state_dict()
            expected = served.model_of(version).state_dict()
            assert gated.keys() == expected.keys()
            assert all(torch.equal(weight, expected[name]) for name, weight in gated.items())
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


@pytest.mark.parametrize(
    ("setting", "device", "merged"),
    [
        ("auto", "cpu", True),
        ("auto", "cuda", False),
        ("merged", "cuda", True),
        ("separate", "cpu", False),
    ],
)
def test_gate_merges_adapters_where_inference_does(
    setting: Literal["auto", "merged", "separate"], device: str, merged: bool
) -> None:
    assert merges_adapters(setting, device) is merged
