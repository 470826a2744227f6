"""Values that a recipe leaves open follow from base, machine and data; what is set stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.base.model import quantization_options
from services.trainer.base.shape import base_shape, shape_of
from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import (
    MAX_TOKENS_PER_STEP,
    MIN_MICRO_BATCH,
    BaseShape,
    DataSize,
    Machine,
    ResolvedRecipe,
    base_quantization,
    replay_token_weight,
    resolve,
)
from services.trainer.training.lora import lora_config
from tests.trainer_rows import SMALL_BASE, SMALL_DATA, SMALL_MACHINE

GIB = 2**30
LARGE_BASE = BaseShape(
    hidden=4096, intermediate=14_336, layers=32, vocabulary=128_256, context=131_072, weights=8 * 10**9
)


def gpu(gib: int) -> Machine:
    return Machine(device="cuda", memory=gib * GIB, weight_bytes=2)


def resolved(
    base: BaseShape = SMALL_BASE,
    machine: Machine = SMALL_MACHINE,
    data: DataSize = SMALL_DATA,
    **settings: Any,
) -> ResolvedRecipe:
    return resolve(Recipe(**settings), base, machine, data)


def test_demo_gets_the_measured_recipe() -> None:
    demo = resolved()
    assert (demo.learning_rate, demo.tokens_per_step, demo.epochs) == (2e-3, 8 * 80, 6)
    assert (demo.rank, demo.alpha, demo.warmup_steps, demo.schedule) == (16, 32, 5, "linear")
    assert (demo.gradient_checkpointing, demo.quantization) == (False, "none")
    assert demo.micro_batch_tokens >= demo.tokens_per_step, "a step goes through the model at once"


@given(st.floats(0, 10), st.integers(0, 10**7), st.integers(1, 10**7), st.integers(1, 50))
def test_replay_keeps_its_weight_however_much_feedback_there_is(
    weight: float, sft: int, replay: int, growth: int
) -> None:
    per_token = replay_token_weight(weight, sft, replay)
    assert per_token >= weight
    assert per_token * replay >= weight * sft * (1 - 1e-9), "all replay weighs at least as all corrections"
    assert replay_token_weight(weight, growth * sft, growth * replay) == pytest.approx(per_token)
    if sft <= replay:
        assert per_token == weight, "little feedback does not weaken replay"


def test_run_without_replay_has_a_weight_for_it() -> None:
    assert replay_token_weight(1.5, 100, 0) == 1.5


def test_wider_bases_learn_with_a_lower_rate() -> None:
    assert resolved(LARGE_BASE).learning_rate == pytest.approx(2.1e-4, rel=0.03)
    assert resolved(LARGE_BASE, method="full").learning_rate == pytest.approx(1.4e-5, rel=0.1)


@given(st.integers(1, 10**7), st.integers(8, 4000))
def test_steps_and_their_size_both_grow_with_the_data(rows: int, size: int) -> None:
    def one(count: int) -> tuple[int, float]:
        found = resolved(data=DataSize(rows=count, tokens=count * size, longest=size))
        return found.tokens_per_step, count * size / found.tokens_per_step

    (tokens, steps), (more_tokens, more_steps) = one(rows), one(4 * rows)
    assert tokens <= more_tokens <= max(8 * size, MAX_TOKENS_PER_STEP)
    assert tokens >= 8 * size - 1
    assert more_steps >= 1.9 * steps


def test_longest_row_follows_the_context_of_the_base() -> None:
    short = SMALL_BASE.model_copy(update={"context": 1024})
    assert resolved(short).max_tokens == 1024
    assert resolved(LARGE_BASE).max_tokens == 4096
    assert resolved(SMALL_BASE.model_copy(update={"context": 0})).max_tokens == 4096
    assert resolved(short, max_tokens=100).max_tokens == 100


def test_checkpointing_starts_where_the_longest_row_does_not_fit() -> None:
    long = DataSize(rows=5000, tokens=5000 * 1000, longest=4000)
    assert not resolved(LARGE_BASE, gpu(80), long).gradient_checkpointing
    small = resolved(LARGE_BASE, gpu(24), long)
    assert small.gradient_checkpointing
    assert small.micro_batch_tokens >= MIN_MICRO_BATCH
    assert resolved(LARGE_BASE, gpu(80), long, gradient_checkpointing="on").gradient_checkpointing


def test_bases_that_do_not_fit_a_gpu_get_4_bit_weights() -> None:
    assert resolved(LARGE_BASE, gpu(80)).quantization == "none"
    assert resolved(LARGE_BASE, gpu(16)).quantization == "4bit"
    assert resolved(LARGE_BASE, gpu(16), quantization="none").quantization == "none"
    assert resolved(LARGE_BASE, gpu(80), quantization="4bit").quantization == "4bit"
    assert resolved(LARGE_BASE, SMALL_MACHINE).quantization == "none", "a CPU computes with whole weights"


def test_base_is_evaluated_with_the_weights_that_it_trains_with() -> None:
    def evaluated(machine: Machine, **settings: Any) -> str:
        return base_quantization(Recipe(**settings), LARGE_BASE, machine)

    for machine in (gpu(80), gpu(16), gpus(16, 4), gpus(7, 2), SMALL_MACHINE):
        for wanted in ("auto", "none", "4bit"):
            found = resolved(LARGE_BASE, machine, quantization=wanted)
            assert evaluated(machine, quantization=wanted) == found.quantization


def gpus(gib: int, processes: int) -> Machine:
    return gpu(gib).model_copy(update={"processes": processes})


def test_base_is_divided_if_only_all_gpus_together_hold_it() -> None:
    def chosen(machine: Machine, **settings: Any) -> tuple[bool, str]:
        found = resolved(LARGE_BASE, machine, **settings)
        return found.sharded, found.quantization

    assert chosen(gpus(80, 4)) == (False, "none"), "each GPU holds it"
    assert chosen(gpus(16, 4)) == (True, "none")
    assert chosen(gpus(16, 1)) == (False, "4bit"), "a process alone has nobody to divide it with"
    assert chosen(gpus(7, 2)) == (False, "4bit"), "even two halves do not fit"
    assert chosen(gpus(7, 2), quantization="none") == (True, "none"), "as well as possible"
    assert chosen(gpus(16, 4), quantization="4bit") == (False, "4bit")
    assert chosen(gpus(16, 4), sharding="off") == (False, "4bit")
    assert chosen(gpus(80, 4), sharding="on") == (True, "none")
    assert chosen(gpus(16, 4), method="full")[0] is False
    assert chosen(SMALL_MACHINE.model_copy(update={"processes": 2})) == (False, "none")
    assert chosen(SMALL_MACHINE.model_copy(update={"processes": 2}), sharding="on") == (True, "none")


@given(st.integers(1, 200), st.integers(100, 100_000))
def test_micro_batches_grow_with_memory(gib: int, tokens: int) -> None:
    data = DataSize(rows=10_000, tokens=10_000 * 500, longest=4000)
    one = resolved(LARGE_BASE, gpu(gib), data)
    assert MIN_MICRO_BATCH <= one.micro_batch_tokens <= 2 * one.tokens_per_step
    assert resolved(LARGE_BASE, gpu(gib), data, micro_batch_tokens=tokens).micro_batch_tokens == tokens


SET = {
    "learning_rate": 2e-4,
    "tokens_per_step": 999,
    "max_tokens": 77,
    "warmup_steps": 0,
    "alpha": 3,
    "micro_batch_tokens": 123,
}


@pytest.mark.parametrize("name", sorted(SET))
def test_setting_is_used_as_it_is(name: str) -> None:
    assert getattr(resolved(LARGE_BASE, gpu(24), **{name: SET[name]}), name) == SET[name]


def test_shape_is_read_from_the_files_of_the_base(tmp_path: Path, tiny_model: Path) -> None:
    shape = base_shape(tiny_model)
    config = json.loads((tiny_model / "config.json").read_bytes())
    assert (shape.hidden, shape.layers) == (config["hidden_size"], config["num_hidden_layers"])
    assert shape.weights > 0
    gpt2 = shape_of({"n_embd": 64, "n_layer": 3, "n_positions": 128, "vocab_size": 50}, 7)
    assert (gpt2.hidden, gpt2.layers, gpt2.context, gpt2.intermediate, gpt2.weights) == (64, 3, 128, 256, 7)
    nested = shape_of({"text_config": {"hidden_size": 32, "max_position_embeddings": 99}}, 1)
    assert (nested.hidden, nested.context) == (32, 99)


def test_4_bit_weights_are_loaded_onto_the_gpu() -> None:
    assert quantization_options("none", "bfloat16") == {}
    options = quantization_options("4bit", "bfloat16")
    config = options["quantization_config"]
    assert options["device_map"] == {"": 0}
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_adapter_of_4_bit_weights_uses_layers_of_peft() -> None:
    """The layer of this project computes with whole weights, and would also match quantised layers."""
    assert lora_config(resolved(LARGE_BASE, gpu(80)))._custom_modules
    assert not lora_config(resolved(LARGE_BASE, gpu(16)))._custom_modules
