"""The gate with a real model: two versions on one base, and candidates that learned nothing."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gate.null_adapters import SEEDS, gate_null_adapters, null_adapter
from examples.world import load_world
from services.trainer.base.model import generate_answers, generate_with_endings, load_base, with_adapter
from services.trainer.base.tokenization import load_chat
from services.trainer.core.chat import Messages
from services.trainer.core.recipe import Recipe
from services.trainer.dataset.filters import GroupedRow
from services.trainer.dataset.snapshot_files import Snapshot, write
from services.trainer.gate.judge_model import MIN_COMPARED
from services.trainer.gate.model_pair import ModelPair, Side, score_likelihoods
from services.trainer.gate.stage import gate_adapter
from services.trainer.progress import Progress
from services.trainer.run.context import RunContext
from services.trainer.run.folder import GATE_REPORT, GATE_REPORT_PAGE
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from shared.adapters.in_memory import InMemoryCache
from shared.versions import VersionRef
from tests.judge_server import served
from tests.trainer_factories import LINE, grouped, row

RECIPE = Recipe(
    rank=4,
    threads=1,
    gate_items=12,
    gate_eval_prompts=12,
    gate_safety_prompts=4,
    gate_skill_prompts=2,
    replay_new_tokens=6,
    gate_new_tokens=4,
)
TEXTS: list[tuple[Messages, str]] = [
    ((("user", "Where is the workshop?"),), "In the old mill by the river."),
    ((("user", "When does it open?"),), "At nine."),
    ((("user", "Who runs it?"),), ""),
]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Any:
    return load_base(tiny_model)


@pytest.fixture
def adapters(base: Any, tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters that differ from the base and from each other."""
    one, other = (null_adapter(base, RECIPE, tmp_path / f"a{seed}", seed, 5.0) for seed in (1, 2))
    return one, other


def weights_of(base: Any) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in base.state_dict().items()}


def test_version_equals_itself_and_the_base_is_left_unchanged(
    base: Any, tiny_model: Path, adapters: tuple[Path, Path]
) -> None:
    chat = load_chat(tiny_model)
    before = weights_of(base)
    with ModelPair(base, {"candidate": adapters[0], "stable": adapters[0]}) as same:
        scores = score_likelihoods(same, chat, TEXTS)
    assert [(score.gain, score.kl) for score in scores] == [(0.0, 0.0)] * 3
    with ModelPair(base, {"candidate": adapters[0], "stable": adapters[1]}) as different:
        first, second = score_likelihoods(different, chat, TEXTS)[:2]
    assert first.kl > 0
    assert second.gain != 0
    after = weights_of(base)
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_continuation_is_the_product_of_each_tokens_probability(
    base: Any, tiny_model: Path, adapters: tuple[Path, Path]
) -> None:
    chat = load_chat(tiny_model)
    with ModelPair(base, {"candidate": adapters[0], "stable": None}) as models:
        continuation = score_likelihoods(models, chat, TEXTS[:1])[0].continuation
    messages, answer = TEXTS[0]
    prompt = chat.prompt_ids(messages)
    tokens = prompt + chat.answer_ids(answer, ended=False)
    for adapter, probability in zip((adapters[0], None), continuation, strict=True):
        with with_adapter(base, adapter) as model, torch.inference_mode():
            distribution = model(input_ids=torch.tensor([tokens])).logits[0].float().softmax(-1)
        not_ending = [
            1 - float(distribution[position, chat.tokenizer.eos_token_id])
            for position in range(len(prompt) - 1, len(tokens) - 1)
        ]
        assert probability == pytest.approx(math.prod(not_ending), rel=1e-4)
        assert 0 < probability < 1


def test_generation_reports_whether_the_model_ended_the_answer(
    base: Any, tiny_model: Path, monkeypatch: Any
) -> None:
    chat = load_chat(tiny_model)
    conversations = [messages for messages, _ in TEXTS]
    first = generate_with_endings(base, chat, conversations, 8)
    assert [ended for _, ended in first] == [False] * 3
    prompt = torch.tensor([chat.prompt_ids(conversations[0])])
    with torch.inference_mode():
        next_token = int(base(input_ids=prompt).logits[0, -1].argmax())
    monkeypatch.setattr(base.generation_config, "eos_token_id", [next_token])
    assert [ended for _, ended in generate_with_endings(base, chat, conversations[:1], 8)] == [True]


def test_each_side_answers_with_its_own_weights(
    base: Any, tiny_model: Path, adapters: tuple[Path, Path]
) -> None:
    chat = load_chat(tiny_model)
    conversations = [messages for messages, _ in TEXTS]
    expected = {}
    for side, adapter in (("candidate", adapters[0]), ("stable", None)):
        with with_adapter(base, adapter) as model:
            expected[side] = generate_answers(model, chat, conversations, 8)
    assert expected["candidate"] != expected["stable"]
    sides: tuple[Side, ...] = ("stable", "candidate", "stable")
    with ModelPair(base, {"candidate": adapters[0], "stable": None}) as models:
        for side in sides:
            with models.activate(side) as model:
                assert generate_answers(model, chat, conversations, 8) == expected[side]


def run_context(tiny: Path, folder: Path) -> RunContext:
    """A run with a snapshot: forty held-out corrections in untrained wordings, and four judged answers."""
    world = load_world()
    held: list[GroupedRow] = grouped(
        [
            row(wording, fact.answers[0], f"u{i}", f"r{i:02}")
            for i, (wording, fact) in enumerate(world.heldout()[:40])
        ]
    )
    judged = [
        replace(row("Hello?", f"Hello {i}, my friend.", f"v{i}", f"j{i}", original=""), kind="thumbs",
                objective="kto", label=i % 2 == 0)
        for i in range(4)
    ]  # fmt: skip
    trained = grouped(
        [
            row(wording, fact.answers[0], "t", f"t{fact.id}{i}")
            for fact in world.facts
            for i, wording in enumerate(world.trained_wordings(fact))
        ]
    )
    run = folder / "runs" / "r-1"
    write(run, Snapshot(tuple(trained), tuple(held + grouped(judged)), (), {"0": 1}), 10)
    stable = VersionRef(version=f"{LINE}@base-00000000", kind="base", digest="0" * 64)
    config = RunConfig("r-1", LINE, {"0": 1}, RECIPE, str(tiny), "tiny", "0" * 64, stable, None, 0)
    settings = TrainerSettings(line=LINE, data_dir=folder / "data", artifacts=str(folder / "artifacts"))
    return RunContext(run, config, settings, Progress(InMemoryCache(), LINE, "r-1"), threading.Event())


def test_no_candidate_that_learned_nothing_passes_the_gate(tiny_model: Path, tmp_path: Path) -> None:
    reports = gate_null_adapters(run_context(tiny_model, tmp_path), tmp_path / "nulls", scale=2.0)
    assert len(reports) == len(SEEDS) == 5
    assert all("held-out items" not in report.reasons[0] for report in reports), "enough items to decide"
    assert [report.verdict for report in reports if report.verdict == "passed"] == []
    names = {figure.name for figure in reports[0].figures}
    assert names >= {"items_score_gain", "correction_likelihood_gain", "general_accuracy_change"}
    assert names >= {"safety_refused", "safety_answered", "thumbs_margin_gain"}
    assert len(list((tmp_path / "nulls").glob(f"*/{GATE_REPORT_PAGE}"))) == 5


def test_gate_asks_the_judge_model_and_derives_the_length_of_answers(
    base: Any, tiny_model: Path, tmp_path: Path
) -> None:
    context = run_context(tiny_model, tmp_path)
    context.config = replace(context.config, recipe=RECIPE.model_copy(update={"gate_new_tokens": None}))
    adapter = null_adapter(base, RECIPE, tmp_path / "adapter", 1, 5.0)
    corrections = {fact.answers[0] for fact in load_world().facts}
    with served(lambda a, b: "A" if a in corrections else "B" if b in corrections else "TIE") as (url, asked):
        context.settings = context.settings.model_copy(update={"judge_url": url, "judge_model": "strong"})
        report = gate_adapter(context, adapter, tmp_path / "gate")
    assert len(asked) > 2 * MIN_COMPARED
    written = json.loads((tmp_path / "gate" / GATE_REPORT).read_text())
    assert written["judge"]["agreed"] == written["judge"]["compared"] > MIN_COMPARED
    assert "judge_agreement" in {figure.name for figure in report.figures}
    assert written["answer_tokens"] >= 40
    assert len(list(context.settings.judge_replies.iterdir())) == len(asked)
