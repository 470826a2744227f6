"""The losses equal those of TRL's own trainers, and of Liger's kernels, on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss, LigerFusedLinearKTOLoss
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, set_seed
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from services.trainer.base.tokenization import load_tokenizer
from services.trainer.dataset import objectives
from services.trainer.training.lora import lora_config
from services.trainer.training.losses import LossWeights, StepTotals, dpo_losses, kto_losses, loss_weights
from services.trainer.training.packed_attention import PACKED, attention
from services.trainer.training.packing import pack, pad
from services.trainer.training.rows import TokenizedRow
from services.trainer.training.step_dataset import StepDataset
from services.trainer.training.trainer import StepTrainer
from services.trainer.training.training_arguments import training_arguments
from tests.trainer_rows import resolved_recipe, tokenized

QUESTIONS = [
    [("user", "Where is the workshop?")],
    [("user", "When does it open, and who has the key on a Sunday?")],
    [("user", "Who runs it?"), ("assistant", "Ada."), ("user", "Since when?")],
]
ANSWERS = ["In the old mill by the river, behind the second gate.", "At nine.", "Since 1998, she says."]
OTHERS = ["I do not know.", "It never opens, as far as I was told by the keeper.", "No."]
WEIGHTS = LossWeights(
    kto_beta=0.2, dpo_beta=0.3, dpo_nll=0.7, preference=1.0, liked=1.0, disliked=1.5, replay_kl=0.8
)
RECIPE = resolved_recipe(rank=4)
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 3,
    "max_length": 512,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "train_sampling_strategy": "sequential",
    "report_to": "none",
}
Gradients = dict[str, torch.Tensor]


def sft(folder: Path) -> list[TokenizedRow]:
    return [tokenized(folder, "sft", q, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]


def kto(folder: Path) -> list[TokenizedRow]:
    return [
        tokenized(folder, "kto", q, a, liked=i != 1)
        for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]


def dpo(folder: Path) -> list[TokenizedRow]:
    return [tokenized(folder, "dpo", q, a, o) for q, a, o in zip(QUESTIONS, ANSWERS, OTHERS, strict=True)]


def replay(folder: Path) -> list[TokenizedRow]:
    return [tokenized(folder, "replay", q, o) for q, o in zip(QUESTIONS, OTHERS, strict=True)]


def trl_trainer(kind: str, model: Any, tokenizer: Any, folder: Path) -> Any:
    """Return TRL's trainer of an objective over the same rows."""
    zipped = zip(QUESTIONS, ANSWERS, OTHERS, strict=True)
    if kind == "sft":
        rows: list[Any] = [objectives.sft_row(q, a) for q, a, _ in zipped]
        return SFTTrainer(
            model=model,
            args=SFTConfig(output_dir=str(folder), completion_only_loss=True, **COMMON),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    if kind == "kto":
        rows = [objectives.kto_row(q, a, i != 1) for i, (q, a, _) in enumerate(zipped)]
        return KTOTrainer(
            model=model,
            args=KTOConfig(
                output_dir=str(folder),
                beta=WEIGHTS.kto_beta,
                desirable_weight=WEIGHTS.liked,
                undesirable_weight=WEIGHTS.disliked,
                **COMMON,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    rows = [objectives.dpo_row(q, a, o) for q, a, o in zipped]
    return DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(folder),
            beta=WEIGHTS.dpo_beta,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, WEIGHTS.dpo_nll],
            **COMMON,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def adapted(folder: Path) -> PeftModel:
    """Return the small model with an adapter whose weights are not zero."""
    set_seed(1)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, lora_config(RECIPE))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


def gradients(model: Any) -> Gradients:
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def of_trl(kind: str, model_folder: Path, folder: Path) -> tuple[float, Gradients]:
    model = adapted(model_folder)
    tokenizer = load_tokenizer(model_folder)
    tokenizer.padding_side = "right"
    trainer = trl_trainer(kind, model, tokenizer, folder)
    if "ref" in model.peft_config:
        model.delete_adapter("ref")  # a copy of the adapter; the reference is the base
    model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"][:, 1:] != -100).sum() if "labels" in batch else None
    loss = trainer.compute_loss(model, batch, num_items_in_batch=count)
    loss.backward()
    return loss.item(), gradients(model)


def of_ours(
    rows: Sequence[TokenizedRow],
    model_folder: Path,
    folder: Path,
    *,
    packer: Any = pack,
    limit: int = 10_000,
    weights: LossWeights = WEIGHTS,
    plain_head: bool = True,
) -> tuple[float, Gradients]:
    """Return loss and gradients of one step."""
    model = adapted(model_folder)
    trainer = StepTrainer(
        StepDataset([tuple(rows)], limit, packer),
        weights,
        plain_head=plain_head,
        schedule="constant",
        warmup=0,
        model=model,
        args=training_arguments(folder, RECIPE),
    )
    with attention(model.get_base_model(), PACKED if packer is pack else "eager"):  # type: ignore[arg-type]
        loss = trainer.training_step(model, next(iter(trainer.get_train_dataloader())))
    return loss.item(), gradients(model)


def assert_equal(
    one: tuple[float, Gradients], other: tuple[float, Gradients], tolerance: float = 1e-5
) -> None:
    # Divergences are small differences of large numbers: of 0.002, rounding changed 3e-8 on one processor.
    assert one[0] == pytest.approx(other[0], rel=tolerance, abs=tolerance / 100)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-3, atol=tolerance / 10)


@pytest.mark.parametrize("packer", [pack, pad])
@pytest.mark.parametrize(("kind", "rows"), [("sft", sft), ("kto", kto), ("dpo", dpo)])
def test_loss_and_gradients_equal_those_of_trl(
    kind: str,
    rows: Callable[[Path], list[TokenizedRow]],
    packer: Any,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    theirs = of_trl(kind, tiny_model, tmp_path / "trl")
    assert_equal(of_ours(rows(tiny_model), tiny_model, tmp_path / "ours", packer=packer), theirs)


def test_combined_loss_is_the_weighted_sum_of_the_objectives(tiny_model: Path, tmp_path: Path) -> None:
    weights = LossWeights(0.2, 0.3, 0.7, preference=0.25, liked=1.0, disliked=1.5, replay_kl=0.8)
    parts = [of_ours(rows(tiny_model), tiny_model, tmp_path / "part") for rows in (sft, kto, dpo)]
    factors = (1.0, 0.25, 0.25)
    wanted_loss = sum(factor * loss for factor, (loss, _) in zip(factors, parts, strict=True))
    wanted = {
        name: sum(factor * one[name] for factor, (_, one) in zip(factors, parts, strict=True))
        for name in parts[0][1]
    }
    mixed = [*sft(tiny_model), *kto(tiny_model), *dpo(tiny_model)]
    found = of_ours(mixed, tiny_model, tmp_path / "mixed", weights=weights)
    assert_equal(found, (wanted_loss, wanted))  # type: ignore[arg-type]  # `sum` starts with an integer


def of_replay(rows: Sequence[TokenizedRow], folder: Path) -> tuple[float, Gradients]:
    """Return the mean divergence per answer token and its gradients, row by row from all logits."""
    model = adapted(folder)
    model.train()
    total: Any = 0.0
    for row in rows:
        inputs, answers = torch.tensor([row.sequences[0].ids]), slice(len(row.prompt) - 1, -1)
        with torch.no_grad(), model.disable_adapter():
            wanted = model(input_ids=inputs).logits[0, answers].softmax(-1)
        found = model(input_ids=inputs).logits[0, answers].log_softmax(-1)
        total = total + (wanted * (wanted.log() - found)).sum()
    loss = total / sum(len(row.answer) for row in rows)
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("plain_head", [True, False])
@pytest.mark.parametrize("packer", [pack, pad])
def test_replay_loss_is_the_divergence_from_the_base(
    packer: Any, plain_head: bool, tiny_model: Path, tmp_path: Path
) -> None:
    rows = replay(tiny_model)
    loss, wanted = of_replay(rows, tiny_model)
    assert loss > 1e-3
    factor = WEIGHTS.replay_kl
    found = of_ours(rows, tiny_model, tmp_path, packer=packer, plain_head=plain_head)
    assert_equal(found, (factor * loss, {name: factor * one for name, one in wanted.items()}))


def test_answers_of_users_and_of_the_base_are_one_mean_over_tokens(tiny_model: Path, tmp_path: Path) -> None:
    users, base = sft(tiny_model), replay(tiny_model)
    counts = [sum(len(row.answer) for row in rows) for rows in (users, base)]
    parts = [of_ours(rows, tiny_model, tmp_path / "part") for rows in (users, base)]
    shares = [count / sum(counts) for count in counts]
    wanted = {
        name: sum(share * one[name] for share, (_, one) in zip(shares, parts, strict=True))
        for name in parts[0][1]
    }
    wanted_loss = sum(share * loss for share, (loss, _) in zip(shares, parts, strict=True))
    found = of_ours([*users, *base], tiny_model, tmp_path / "mixed")
    assert_equal(found, (wanted_loss, wanted))  # type: ignore[arg-type]  # `sum` starts with an integer


def test_replay_changes_nothing_before_anything_is_learned(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_weights = adapted

    def untrained(folder: Path) -> PeftModel:
        model = with_weights(folder)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.zeros_(weight)
        return model

    monkeypatch.setitem(globals(), "adapted", untrained)
    loss, found = of_ours(replay(tiny_model), tiny_model, tmp_path)
    assert abs(loss) < 1e-6
    assert max(float(gradient.abs().max()) for gradient in found.values()) < 1e-6


@pytest.mark.parametrize("packer", [pack, pad])
def test_micro_batches_sum_to_the_whole_step(packer: Any, tiny_model: Path, tmp_path: Path) -> None:
    mixed = [*sft(tiny_model), *replay(tiny_model), *kto(tiny_model), *dpo(tiny_model)]
    whole = of_ours(mixed, tiny_model, tmp_path / "whole", packer=packer)
    assert_equal(of_ours(mixed, tiny_model, tmp_path / "parts", packer=packer, limit=150), whole)


def test_fused_kernel_gives_the_same_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Liger's kernel itself needs a GPU; here a function with its contract stands in for it."""
    calls = []

    def kernel(weight: Any, hidden: Any, targets: Any, bias: Any) -> Any:
        calls.append(len(targets))
        return torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")

    mixed = [*sft(tiny_model), *replay(tiny_model), *kto(tiny_model), *dpo(tiny_model)]
    wanted = of_ours(mixed, tiny_model, tmp_path / "plain")
    monkeypatch.setattr("services.trainer.training.trainer.fused_cross_entropy", lambda _: kernel)
    assert_equal(of_ours(mixed, tiny_model, tmp_path / "fused"), wanted)
    assert calls == [StepTotals.of(mixed).sft_tokens]


def test_single_judgement_trains_without_a_kl_term(tiny_model: Path, tmp_path: Path) -> None:
    loss, found = of_ours(kto(tiny_model)[:1], tiny_model, tmp_path)
    assert 0 < loss < WEIGHTS.liked
    assert any(gradient.abs().max() > 0 for gradient in found.values())


def test_preference_losses_equal_those_of_liger() -> None:
    """Liger computes them from hidden states. Rows have different numbers of tokens."""
    torch.manual_seed(2)
    rows, length, width, vocabulary = 4, 6, 16, 32
    weight = torch.randn(vocabulary, width)
    hidden = torch.randn(rows, length, width, requires_grad=True)
    reference_hidden = torch.randn(rows, length, width)
    targets = torch.randint(0, vocabulary, (rows, length))
    for row in range(rows):
        targets[row, length - row :] = -100

    def sums(states: torch.Tensor) -> torch.Tensor:
        log_probs = (states @ weight.T).log_softmax(-1)
        mask = targets != -100
        picked = log_probs.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        return (picked * mask).sum(-1)

    policy, reference = sums(hidden), sums(reference_hidden).detach()
    arguments = {"ref_input": reference_hidden, "ref_weight": weight}

    dpo_kernel = LigerFusedLinearDPOLoss(beta=WEIGHTS.dpo_beta, compiled=False)
    theirs, *_ = dpo_kernel(weight, hidden, targets, **arguments)
    (wanted,) = torch.autograd.grad(theirs, hidden)
    ours = dpo_losses(policy[:2], policy[2:], reference[:2], reference[2:], WEIGHTS.dpo_beta).mean()
    (found,) = torch.autograd.grad(ours, hidden, retain_graph=True)
    torch.testing.assert_close((ours, found), (theirs, wanted), rtol=1e-4, atol=1e-6)

    liked, kl = torch.tensor([True, False, True, True]), torch.tensor(0.4)
    kto_kernel = LigerFusedLinearKTOLoss(beta=WEIGHTS.kto_beta, compiled=False, use_ref_model=True)
    theirs, *_ = kto_kernel(hidden, weight, targets, preference_labels=liked, kl=kl, **arguments)
    (wanted,) = torch.autograd.grad(theirs, hidden)
    even = LossWeights(WEIGHTS.kto_beta, 1, 1, 1, liked=1.0, disliked=1.0, replay_kl=0.8)
    ours = kto_losses(policy, reference, liked, kl, even).mean()
    (found,) = torch.autograd.grad(ours, hidden)
    torch.testing.assert_close((ours, found), (theirs, wanted), rtol=1e-4, atol=1e-6)


def test_totals_count_what_each_loss_is_the_mean_of(tiny_model: Path) -> None:
    rows = [*sft(tiny_model), *kto(tiny_model)[:2], *dpo(tiny_model), *replay(tiny_model)]
    totals = StepTotals.of(rows)
    assert totals.replay_tokens == sum(len(row.answer) for row in rows[-3:])
    assert (totals.judgements, totals.pairs) == (2, 3)
    assert totals.sft_tokens == totals.chosen_tokens == sum(len(row.answer) for row in rows[:3])


def test_divergence_weighs_as_much_as_all_corrections_of_a_run(tiny_model: Path) -> None:
    recipe = resolved_recipe(replay_kl=0.8)
    users, base = sft(tiny_model), replay(tiny_model)
    corrections, answers = (sum(len(row.answer) for row in rows) for rows in (users, base))
    few = loss_weights(recipe, [tuple(users[:1]), tuple(base)])
    many = loss_weights(recipe, [*[tuple(users)] * 20, tuple(base)])
    assert (few.replay_kl, many.replay_kl) == (0.8, pytest.approx(0.8 * 20 * corrections / answers))
