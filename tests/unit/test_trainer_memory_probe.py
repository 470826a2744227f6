"""A run on a GPU measures its micro-batches once. Here the memory is a formula of the tokens."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback, set_seed

from services.trainer.run import micro_batch
from services.trainer.training.fine_tune import fine_tune
from services.trainer.training.memory_probe import distinct, probe_row
from services.trainer.training.rows import TokenizedRow
from tests.trainer_rows import resolved_recipe

ROW = 48
PER_TOKEN, CONSTANT = 1000, 50_000


class FormulaMeter:
    """Measures `CONSTANT + PER_TOKEN * tokens` bytes for the largest forward pass, of `memory` bytes."""

    def __init__(self, model: Any, memory: int) -> None:
        self.memory = memory
        self.passes: list[int] = []
        self._since = 0
        # PEFT skips the hooks of the whole model.
        model.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, __: Any, named: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        self.passes.append(named["input_ids"].numel())
        if CONSTANT + PER_TOKEN * self.passes[-1] > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def start(self) -> None:
        self._since = len(self.passes)

    def peak_bytes(self) -> int:
        return CONSTANT + PER_TOKEN * max(self.passes[self._since :])

    def available_bytes(self) -> int:
        return self.memory


def rows(kind: Any, count: int = 12) -> list[TokenizedRow]:
    prompt = tuple(range(1, 41))
    return [
        TokenizedRow(f"{n}", kind, (*prompt, n), (5, 6, 7, 8, 9, 10, 11 + n), liked=bool(n % 2))
        for n in range(count)
    ]


def base() -> Any:
    set_seed(3)
    auto: Any = AutoModelForCausalLM
    return auto.from_config(
        LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        )
    )


def train(folder: Path, memory: int, kind: Any = "sft", **update: Any) -> tuple[list[int], list[int], Any]:
    """Train two steps of 12 rows. Return the chosen sizes, the tokens of all forward passes, and the weights."""
    model, chosen = base(), list[int]()
    meter = FormulaMeter(model, memory)
    recipe = resolved_recipe(rank=2, method=update.pop("method", "lora")).model_copy(
        update={"micro_batch_tokens": 4 * ROW, "micro_batch_limit": 24 * ROW} | update
    )
    trained = fine_tune(
        model,
        [tuple(rows(kind))] * 2,
        recipe,
        folder,
        callback=TrainerCallback(),
        stop=threading.Event(),
        meter=meter,
        measured=chosen.append,
    )
    weights = torch.cat([one.detach().flatten() for one in trained.parameters() if one.requires_grad])
    return chosen, meter.passes, weights


@pytest.mark.parametrize("kind", ["sft", "kto"])
def test_micro_batches_get_the_size_that_fits(tmp_path: Path, kind: Any) -> None:
    ample = 10 * (CONSTANT + 100 * ROW * PER_TOKEN)
    chosen, passes, _ = train(tmp_path / "ample", ample, kind)
    assert passes[:2] == [ROW, 4 * ROW], "one row, then the size by estimate"
    assert chosen == [24 * ROW // 256 * 256]
    assert len(passes) == 4, "each step is one micro-batch now"
    chosen, passes, _ = train(tmp_path / "little", CONSTANT + 9 * ROW * PER_TOKEN, kind)
    assert ROW <= chosen[0] < 9 * ROW
    assert max(passes) <= chosen[0]


def test_sizes_that_do_not_fit_are_halved(tmp_path: Path) -> None:
    chosen, passes, _ = train(tmp_path, CONSTANT + 3 * ROW * PER_TOKEN)
    assert passes[:3] == [ROW, 4 * ROW, 2 * ROW]
    assert chosen[0] < 3 * ROW
    with pytest.raises(torch.OutOfMemoryError):
        train(tmp_path / "none", CONSTANT)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_measuring_changes_nothing_else(tmp_path: Path, method: str) -> None:
    ample = 10 * (CONSTANT + 100 * ROW * PER_TOKEN)
    chosen, _, measured = train(tmp_path / "measured", ample, method=method, lora_dropout=0.1)
    _, _, given = train(
        tmp_path / "given",
        ample,
        method=method,
        lora_dropout=0.1,
        micro_batch_tokens=chosen[0],
        micro_batch_limit=None,
    )
    torch.testing.assert_close(measured, given, rtol=0, atol=0)


def test_longest_sequence_is_measured_without_a_shared_prompt() -> None:
    short, pair = rows("sft", 1)[0], TokenizedRow("p", "dpo", (1, 2, 3), (4,) * 99, (5,) * 100)
    assert probe_row([short]).objective == "sft"
    measured = probe_row([short, pair])
    assert (measured.objective, measured.prompt, measured.answer) == ("kto", (1, 2, 3), (5,) * 100)
    assert len({distinct(measured, token).prompt for token in range(9)}) == 9


def test_measured_size_is_stored_and_then_halved_as_usual(tmp_path: Path) -> None:
    assert not micro_batch.start(tmp_path, 1000, 100).measured
    micro_batch.record_measured(tmp_path, 4096)
    resumed = micro_batch.start(tmp_path, 1000, 100)
    assert (resumed.tokens, resumed.planned, resumed.measured) == (4096, 4096, True)
    assert micro_batch.reduction_note(tmp_path) is None
    assert micro_batch.halve(tmp_path) == 2048
    halved = micro_batch.start(tmp_path, 1000, 100)
    assert (halved.tokens, halved.measured) == (2048, True), "a resumed run does not measure again"
    assert json.loads((tmp_path / "micro-batch.json").read_text())["planned"] == 4096
