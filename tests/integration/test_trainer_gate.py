"""The gate with a model: two versions over one base, and candidates that learned nothing."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gate.null_adapters import SEEDS, null_adapter, nulls_through
from examples.world import load_world
from services.trainer.base.model import generate_answers, generate_with_endings, load_base, with_adapter
from services.trainer.base.tokenization import load_tokenizer, prompt_ids
from services.trainer.core.chat import Messages
from services.trainer.core.recipe import Recipe
from services.trainer.dataset.filters import GroupedRow
from services.trainer.dataset.snapshot import Snapshot, write
from services.trainer.gate.model_pair import Speakers, weigh
from services.trainer.progress import Progress
from services.trainer.run.context import RunContext
from services.trainer.run.folder import GATE_REPORT_PAGE
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from shared.adapters.in_memory import InMemoryCache
from shared.versions import VersionRef
from tests.trainer_factories import LINE, grouped, row

RECIPE = Recipe(
    rank=4,
    threads=1,
    gate_items=12,
    gate_eval_prompts=12,
    gate_safety_prompts=4,
    replay_new_tokens=6,
    gate_new_tokens=4,
)
SAID: list[tuple[Messages, str]] = [
    ((("user", "Where is the workshop?"),), "In the old mill by the river."),
    ((("user", "When does it open?"),), "At nine."),
    ((("user", "Who runs it?"),), ""),
]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Any:
    return load_base(tiny_model)


@pytest.fixture
def adapters(base: Any, tmp_path: Path) -> tuple[Path, Path]:
    """Two that differ from the base and from each other."""
    one, other = (null_adapter(base, RECIPE, tmp_path / f"a{seed}", seed, 5.0) for seed in (1, 2))
    return one, other


def weights_of(base: Any) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in base.state_dict().items()}


def test_a_version_is_as_far_from_itself_as_nothing_and_the_base_is_left_as_it_was(
    base: Any, tiny_model: Path, adapters: tuple[Path, Path]
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    before = weights_of(base)
    with Speakers(base, {"candidate": adapters[0], "stable": adapters[0]}) as same:
        found = weigh(same, tokenizer, SAID)
    assert [(one.gain, one.kl) for one in found] == [(0.0, 0.0)] * 3
    with Speakers(base, {"candidate": adapters[0], "stable": adapters[1]}) as both:
        one, other = weigh(both, tokenizer, SAID)[:2]
    assert one.kl > 0
    assert other.gain != 0
    after = weights_of(base)
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_how_likely_a_version_goes_on_is_what_its_own_tokens_say(
    base: Any, tiny_model: Path, adapters: tuple[Path, Path]
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    with Speakers(base, {"candidate": adapters[0], "stable": None}) as speakers:
        found = weigh(speakers, tokenizer, SAID[:1])[0].goes_on
    messages, answer = SAID[0]
    prompt = prompt_ids(tokenizer, messages)
    said = prompt + tokenizer(answer, add_special_tokens=False)["input_ids"]
    for adapter, chance in zip((adapters[0], None), found, strict=True):
        with with_adapter(base, adapter) as model, torch.inference_mode():
            likely = model(input_ids=torch.tensor([said])).logits[0].float().softmax(-1)
        on = [
            1 - float(likely[place, tokenizer.eos_token_id])
            for place in range(len(prompt) - 1, len(said) - 1)
        ]
        assert chance == pytest.approx(math.prod(on), rel=1e-4)
        assert 0 < chance < 1


def test_whether_it_ended_an_answer_itself_is_told(base: Any, tiny_model: Path, monkeypatch: Any) -> None:
    tokenizer = load_tokenizer(tiny_model)
    asked = [messages for messages, _ in SAID]
    first = generate_with_endings(base, tokenizer, asked, 8)
    assert [ended for _, ended in first] == [False] * 3
    prompt = torch.tensor([prompt_ids(tokenizer, asked[0])])
    with torch.inference_mode():
        soonest = int(base(input_ids=prompt).logits[0, -1].argmax())
    monkeypatch.setattr(base.generation_config, "eos_token_id", [soonest])
    assert [ended for _, ended in generate_with_endings(base, tokenizer, asked[:1], 8)] == [True]


def test_each_side_speaks_with_its_own_weights_and_the_base_with_none(
    base: Any, tiny_model: Path, adapters: tuple[Path, Path]
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    asked = [messages for messages, _ in SAID]
    expected = {}
    for name, adapter in (("candidate", adapters[0]), ("stable", None)):
        with with_adapter(base, adapter) as model:
            expected[name] = generate_answers(model, tokenizer, asked, 8)
    assert expected["candidate"] != expected["stable"]
    with Speakers(base, {"candidate": adapters[0], "stable": None}) as speakers:
        for who in ("stable", "candidate", "stable"):
            with speakers.speaking(who) as model:
                assert generate_answers(model, tokenizer, asked, 8) == expected[who]


def work_of(tiny: Path, folder: Path) -> RunContext:
    """A run that has its snapshot: forty held-out corrections in wordings of their own, four judged answers."""
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


def test_five_candidates_that_learned_nothing_go_through_the_gate_and_none_passes(
    tiny_model: Path, tmp_path: Path
) -> None:
    reports = nulls_through(work_of(tiny_model, tmp_path), tmp_path / "nulls", scale=2.0)
    assert len(reports) == len(SEEDS) == 5
    assert all("held-out items" not in report.reasons[0] for report in reports), "enough items to decide"
    assert [report.verdict for report in reports if report.verdict == "passed"] == []
    names = {figure.name for figure in reports[0].figures}
    assert names >= {"items_score_gain", "correction_likelihood_gain", "general_accuracy_change"}
    assert names >= {"safety_refused", "safety_answered", "thumbs_margin_gain"}
    assert len(list((tmp_path / "nulls").glob(f"*/{GATE_REPORT_PAGE}"))) == 5
