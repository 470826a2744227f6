"""No step of training reads a value back from the device, which would make a GPU wait for the next kernel."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback, set_seed

from services.trainer.training import fine_tune
from services.trainer.training.rows import TokenizedRow
from services.trainer.training.trainer import StepTrainer
from tests.trainer_rows import resolved_recipe

STEPS = 3
READS = frozenset(
    {
        "aten::_local_scalar_dense",
        "aten::equal",
        "aten::is_nonzero",
        "aten::masked_select",
        "aten::nonzero",
        "aten::unique_dim",
        "aten::_unique2",
    }
)
"""Operations whose result the host needs: `.item()`, `bool()`, and those with outputs of unknown size."""


class ReadCounter(TorchDispatchMode):
    """Counts operations whose result the host needs."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().partition(".")[0] in READS:
            self.reads[func.name()] += 1
        return func(*args, **(kwargs or {}))


class Watch(TrainerCallback):
    """Counts from the end of the first step to the end of the last one, without the logs."""

    def __init__(self, counter: ReadCounter) -> None:
        self.counter = counter
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps = state.global_step
        control.should_log = control.should_save = False
        if self.steps == 1:
            self.counter.__enter__()
        elif self.steps == STEPS:
            self.counter.__exit__(None, None, None)


def rows() -> list[TokenizedRow]:
    """Return rows of all objectives, which have a common beginning."""
    prompt = tuple(range(1, 40))
    return [
        *(TokenizedRow(f"s{n}", "sft", (*prompt, n), (5, 6, 7 + n)) for n in range(4)),
        *(TokenizedRow(f"k{n}", "kto", (*prompt, n), (9, 6, 7 + n), liked=bool(n % 2)) for n in range(4)),
        *(TokenizedRow(f"d{n}", "dpo", (*prompt, n), (9, 6), (11, 7 + n)) for n in range(2)),
    ]


def reads_of_training(folder: Path, **settings: Any) -> Counter[str]:
    """Return what steps 2 to `STEPS` read back to the host."""
    set_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    auto: Any = AutoModelForCausalLM
    counter = ReadCounter()
    watch = Watch(counter)
    recipe = resolved_recipe(rank=4, **settings)
    fine_tune.fine_tune(
        auto.from_config(config),
        [tuple(rows())] * STEPS,
        recipe,
        folder,
        callback=watch,
        stop=threading.Event(),
    )
    assert watch.steps == STEPS
    return counter.reads


@pytest.fixture(autouse=True)
def _log_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = fine_tune.training_arguments

    def log_rarely(*given: Any) -> Any:
        chosen = arguments(*given)
        chosen.logging_steps = 10
        return chosen

    monkeypatch.setattr(fine_tune, "training_arguments", log_rarely)


@pytest.mark.parametrize(("micro_batch_tokens", "checkpointing"), [(10_000, "off"), (200, "on")])
def test_no_step_waits_for_the_device(tmp_path: Path, micro_batch_tokens: int, checkpointing: str) -> None:
    reads = reads_of_training(
        tmp_path, micro_batch_tokens=micro_batch_tokens, gradient_checkpointing=checkpointing
    )
    assert not reads


def test_a_read_in_a_step_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a loss that looks at its value."""
    unchanged = StepTrainer._loss

    def look(self: Any, *given: Any) -> torch.Tensor:
        loss = unchanged(self, *given)
        assert float(loss.detach()) > 0
        return loss

    monkeypatch.setattr(StepTrainer, "_loss", look)
    assert sum(reads_of_training(tmp_path).values()) == STEPS - 1
