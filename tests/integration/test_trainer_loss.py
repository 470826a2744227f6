"""The loss that a CPU trains with is TRL's own, on the same batch, to the rounding of fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from services.trainer.base.tokenization import load_tokenizer
from services.trainer.core.recipe import Recipe
from services.trainer.dataset.objectives import sft_row
from services.trainer.training.cpu.sft_trainer import CpuSFTTrainer, SFTTrainer
from services.trainer.training.train import sft_arguments, with_training_attention

PAIRS = [
    sft_row([("user", "Where is the workshop?")], "In the old mill by the river, behind the second gate."),
    sft_row([("user", "When does it open, and who has the key on a Sunday?")], "At nine."),
    sft_row(
        [("user", "Who runs it?"), ("assistant", "Ada."), ("user", "Since when?")], "Since 1998, she says."
    ),
]


def stepped(kind: Any, model: Path, folder: Path, attention: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch."""
    tokenizer = load_tokenizer(model)
    tokenizer.padding_side = "right"
    recipe = Recipe(batch_size=3, threads=1)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = kind(
        model=with_training_attention(loaded, recipe.max_tokens) if attention == "eager" else loaded,
        args=sft_arguments(folder, recipe),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )
    loaded.train()
    batch = next(iter(trainer.get_train_dataloader()))
    answered = (batch["labels"] != -100).sum()
    loss = trainer.compute_loss(loaded, batch, num_items_in_batch=answered)
    loss.backward()
    gradients = {name: one.grad for name, one in loaded.named_parameters() if one.grad is not None}
    return loss.item(), gradients


def test_loss_and_gradients_are_those_of_trl(tiny_model: Path, tmp_path: Path) -> None:
    theirs, their_gradients = stepped(SFTTrainer, tiny_model, tmp_path / "theirs", "sdpa")
    ours, our_gradients = stepped(CpuSFTTrainer, tiny_model, tmp_path / "ours", "eager")
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-3, atol=1e-6)
