"""The loss used on a CPU equals TRL's own on the same batch, up to fp32 rounding."""

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
from services.trainer.training.cpu.attention import with_training_attention
from services.trainer.training.cpu.sft_trainer import CpuSFTTrainer, SFTTrainer
from services.trainer.training.train import sft_arguments

ROWS = [
    sft_row([("user", "Where is the workshop?")], "In the old mill by the river, behind the second gate."),
    sft_row([("user", "When does it open, and who has the key on a Sunday?")], "At nine."),
    sft_row(
        [("user", "Who runs it?"), ("assistant", "Ada."), ("user", "Since when?")], "Since 1998, she says."
    ),
]


def loss_and_gradients(
    trainer_class: Any, model_folder: Path, folder: Path, *, eager: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return a trainer's loss and gradients for one batch of `ROWS`."""
    tokenizer = load_tokenizer(model_folder)
    tokenizer.padding_side = "right"
    recipe = Recipe(batch_size=3, threads=1)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    trainer = trainer_class(
        model=with_training_attention(model, recipe.max_tokens) if eager else model,
        args=sft_arguments(folder, recipe),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    answer_tokens = (batch["labels"] != -100).sum()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=answer_tokens)
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.item(), gradients


def test_loss_and_gradients_equal_those_of_trl(tiny_model: Path, tmp_path: Path) -> None:
    trl, trl_gradients = loss_and_gradients(SFTTrainer, tiny_model, tmp_path / "trl", eager=False)
    ours, our_gradients = loss_and_gradients(CpuSFTTrainer, tiny_model, tmp_path / "ours", eager=True)
    assert ours == pytest.approx(trl, rel=1e-5)
    assert our_gradients.keys() == trl_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, trl_gradients[name], rtol=1e-3, atol=1e-6)
