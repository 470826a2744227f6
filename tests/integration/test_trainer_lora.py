"""The adapter's own layer computes what PEFT's does, and what it learned is PEFT's to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config

from services.trainer.core.recipe import Recipe
from services.trainer.training.lora import BaseDtypeLinear, lora_config

IDS = torch.arange(1, 13).reshape(2, 6)


def base(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype)


def adapted(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    """With an adapter that does something: a fresh one does not."""
    found = get_peft_model(base(model, dtype), lora_config(Recipe(rank=4)))
    torch.manual_seed(6)
    for name, one in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(one, std=0.05)
    return found


def test_saved_and_loaded_by_peft_alone_it_says_the_same(tiny_model: Path, tmp_path: Path) -> None:
    ours = adapted(tiny_model)
    layers = [one for one in ours.modules() if isinstance(one, BaseDtypeLinear)]
    assert layers
    ours.save_pretrained(str(tmp_path))
    theirs = PeftModel.from_pretrained(base(tiny_model), tmp_path)
    assert not any(isinstance(one, BaseDtypeLinear) for one in theirs.modules())
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_peft(tiny_model: Path, tmp_path: Path) -> None:
    ours = adapted(tiny_model)
    ours.save_pretrained(str(tmp_path))
    theirs = PeftModel.from_pretrained(base(tiny_model), tmp_path, is_trainable=True)
    for model in (ours, theirs):
        model(IDS, labels=IDS).loss.backward()
    wanted = {name: one.grad for name, one in theirs.named_parameters() if one.grad is not None}
    found = {name: one.grad for name, one in ours.named_parameters() if one.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-6)


def test_of_a_base_in_bf16_the_adapter_learns_in_fp32(tiny_model: Path) -> None:
    ours = adapted(tiny_model, torch.bfloat16)
    ours(IDS, labels=IDS).loss.backward()
    trained = [one for one in ours.parameters() if one.requires_grad]
    assert {one.dtype for one in trained} == {torch.float32}
    assert {one.grad.dtype for one in trained} == {torch.float32}


def test_turned_off_it_is_the_base(tiny_model: Path) -> None:
    ours = adapted(tiny_model)
    with ours.disable_adapter():
        off = ours(IDS).logits
    torch.testing.assert_close(off, base(tiny_model)(IDS).logits, rtol=0, atol=0)
    assert not torch.allclose(off, ours(IDS).logits)


@pytest.mark.parametrize("merged", [False, True])
def test_merged_or_not_it_says_the_same(tiny_model: Path, merged: bool) -> None:
    ours = adapted(tiny_model)
    before = ours(IDS).logits
    if merged:
        ours.merge_adapter()
    torch.testing.assert_close(ours(IDS).logits, before, rtol=1e-4, atol=1e-4)


def test_layers_that_are_not_linear_are_left_to_peft() -> None:
    small = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    with pytest.warns(UserWarning, match="Conv1D"):
        model = get_peft_model(small, lora_config(Recipe(rank=4)))
    assert not any(isinstance(one, BaseDtypeLinear) for one in model.modules())
    assert any("lora_A" in name for name, _ in model.named_parameters())
