"""The LoRA layer computes what PEFT's does, and PEFT loads what it learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from services.trainer.training.cpu.lora_layer import BaseDtypeLinear
from services.trainer.training.lora import lora_config
from tests.trainer_rows import resolved_recipe

IDS = torch.arange(1, 13).reshape(2, 6)


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model


def adapted_model(folder: Path, dtype: torch.dtype = torch.float32) -> PeftModel:
    """Return the base with an adapter whose weights are not zero, as those of a fresh adapter are."""
    model = get_peft_model(load_base(folder, dtype), lora_config(resolved_recipe(rank=4)))
    torch.manual_seed(6)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


def test_peft_loads_the_adapter_and_gives_the_same_logits(tiny_model: Path, tmp_path: Path) -> None:
    ours = adapted_model(tiny_model)
    assert any(isinstance(layer, BaseDtypeLinear) for layer in ours.modules())
    ours.save_pretrained(str(tmp_path))
    peft = PeftModel.from_pretrained(load_base(tiny_model), tmp_path)
    assert not any(isinstance(layer, BaseDtypeLinear) for layer in peft.modules())
    torch.testing.assert_close(ours(IDS).logits, peft(IDS).logits, rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_peft(tiny_model: Path, tmp_path: Path) -> None:
    ours = adapted_model(tiny_model)
    ours.save_pretrained(str(tmp_path))
    peft = PeftModel.from_pretrained(load_base(tiny_model), tmp_path, is_trainable=True)
    for model in (ours, peft):
        model(IDS, labels=IDS).loss.backward()
    expected = {name: weight.grad for name, weight in peft.named_parameters() if weight.grad is not None}
    gradients = {name: weight.grad for name, weight in ours.named_parameters() if weight.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_adapter_of_a_bfloat16_base_trains_in_float32(tiny_model: Path) -> None:
    ours = adapted_model(tiny_model, torch.bfloat16)
    ours(IDS, labels=IDS).loss.backward()
    trained = [weight for weight in ours.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    assert {weight.grad.dtype for weight in trained if weight.grad is not None} == {torch.float32}
    assert all(weight.grad is not None for weight in trained)


def test_disabled_adapter_gives_the_base(tiny_model: Path) -> None:
    ours = adapted_model(tiny_model)
    with ours.disable_adapter():
        disabled = ours(IDS).logits
    torch.testing.assert_close(disabled, load_base(tiny_model)(IDS).logits, rtol=0, atol=0)
    assert not torch.allclose(disabled, ours(IDS).logits)


@pytest.mark.parametrize("merged", [False, True])
def test_merging_does_not_change_the_logits(tiny_model: Path, merged: bool) -> None:
    ours = adapted_model(tiny_model)
    before = ours(IDS).logits
    if merged:
        ours.merge_adapter()
    torch.testing.assert_close(ours(IDS).logits, before, rtol=1e-4, atol=1e-4)


def test_layers_other_than_linear_are_left_to_peft() -> None:
    small = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    with pytest.warns(UserWarning, match="Conv1D"):
        model = get_peft_model(small, lora_config(resolved_recipe(rank=4)))
    assert not any(isinstance(layer, BaseDtypeLinear) for layer in model.modules())
    assert any("lora_A" in name for name, _ in model.named_parameters())
