"""The base's chat template at start and in a run: bases that cannot be trained, rows that the template refuses."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from services.trainer.__main__ import check_base_meanwhile, usable_marks
from services.trainer.base.tokenization import TokenCounts
from services.trainer.dataset import snapshot
from services.trainer.dataset.holdout import is_held_out
from services.trainer.settings import TrainerSettings
from services.trainer.worker.base_check import BaseCheck, check_base, inspect_base, remembered_check
from shared.adapters.base_model import PinnedBase
from shared.chat_format import ChatFormat
from shared.errors import Misconfigured
from tests.chat_bases import family_tokenizer, shipped_template
from tests.trainer_factories import LINE, example, revision

TRAINING = [user for n in range(20) if not is_held_out(LINE, user := f"user-{n}")]
NO_REASONING = {"enable_thinking": False}


@pytest.fixture
def reasoning_base(tmp_path: Path, tiny_model: Path) -> PinnedBase:
    """A base with Qwen3's chat template."""
    shutil.copytree(tiny_model, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "base" / "chat_template.jinja").write_text(shipped_template("qwen3"))
    return PinnedBase(tmp_path / "base", "reasoning", "ab" * 32)


def settings(tmp_path: Path, **more: Any) -> TrainerSettings:
    return TrainerSettings(data_dir=tmp_path, demo=True, **more)


def test_reasoning_base_stops_the_start_with_a_remedy(
    reasoning_base: PinnedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.worker.base_check.check_base", inspect_base)
    with pytest.raises(Misconfigured, match="LOOPWRIGHT_CHAT_TEMPLATE_KWARGS") as refused:
        usable_marks(settings(tmp_path), reasoning_base)
    assert "<think>" in str(refused.value)
    marks = usable_marks(settings(tmp_path, chat_template_kwargs=NO_REASONING), reasoning_base)
    assert "<|im_end|>" in marks
    assert usable_marks(settings(tmp_path, mode="export"), reasoning_base) == marks


def test_problem_that_is_found_later_stops_the_trainer(
    reasoning_base: PinnedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.worker.base_check.check_base", inspect_base)
    trainer, stopping = MarkedTrainer(), threading.Event()
    problems = check_base_meanwhile(settings(tmp_path), reasoning_base, cast(Any, trainer), stopping)
    assert stopping.wait(60)
    assert "enable_thinking" in str(problems[0])
    trains = settings(tmp_path, chat_template_kwargs=NO_REASONING)
    assert check_base_meanwhile(trains, reasoning_base, cast(Any, trainer), threading.Event()) == []
    assert trainer.marked.wait(60)


class MarkedTrainer:
    """A trainer that is given the marks."""

    def __init__(self) -> None:
        self.marked = threading.Event()

    def use_marks(self, marks: frozenset[str]) -> None:
        assert "<|im_end|>" in marks
        self.marked.set()


def test_golden_question_that_the_template_refuses_stops_the_start(
    reasoning_base: PinnedBase, tmp_path: Path
) -> None:
    golden = tmp_path / "golden.jsonl"
    question = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]}
    golden.write_text(json.dumps(question | {"must_contain": ["Ida"], "name": "founder"}))
    assert inspect_base(reasoning_base.path, {}, golden).problem
    (reasoning_base.path / "chat_template.jinja").write_text(shipped_template("gemma"))
    with pytest.raises(Misconfigured, match=r"founder: .*System role not supported"):
        inspect_base(reasoning_base.path, {}, golden)


def test_check_in_a_process_of_its_own_is_the_same(reasoning_base: PinnedBase) -> None:
    found = check_base(reasoning_base.path, {"number": 1})
    assert found == inspect_base(reasoning_base.path, {"number": 1})
    assert '"number": 1, "enable_thinking": false' in str(found.problem)


def test_tokenizer_that_cannot_be_loaded_stops_the_start(reasoning_base: PinnedBase) -> None:
    (reasoning_base.path / "tokenizer.json").write_text("{}")
    with pytest.raises(Misconfigured, match="cannot be used"):
        check_base(reasoning_base.path, {})


def test_row_that_the_template_refuses_is_quarantined(tiny_model: Path) -> None:
    chat = ChatFormat(family_tokenizer(tiny_model, "gemma"))

    asked = revision("r1", "Who?", "Ida Voss.", TRAINING[0])
    other = revision("r2", "When does it open?", "At nine.", TRAINING[1])
    system = other.messages[0].model_copy(update={"role": "system"})
    with_system = other.model_copy(update={"messages": (system, *other.messages)})
    long = revision("r3", "Who runs the other house?", "Ida Voss does. " * 20, TRAINING[2])
    found = snapshot.build(
        LINE, [example(one) for one in (asked, with_system, long)], {}, unfit=TokenCounts(chat, 60).why_unfit
    )
    assert [one.row.response_id for one in found.train] == ["r1"]
    assert {one.response_id: one.reason for one in found.quarantined} == {
        "r2": "chat template: System role not supported",
        "r3": "tokens: longer than the limit of a run",
    }


def test_base_that_was_found_fit_is_not_checked_again(
    tmp_path: Path, reasoning_base: PinnedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[tuple[object, ...]] = []

    def counted(*arguments: Any) -> BaseCheck:
        checks.append(arguments)
        return inspect_base(*arguments)

    monkeypatch.setattr("services.trainer.worker.base_check.check_base", counted)
    file, golden = tmp_path / "base-check.json", tmp_path / "golden.jsonl"
    golden.write_text('{"question": "How much is it?", "must_contain": ["20 dollars"]}\n')
    first = remembered_check(file, reasoning_base, NO_REASONING)
    assert remembered_check(file, reasoning_base, NO_REASONING) == first
    assert len(checks) == 1
    remembered_check(file, reasoning_base, NO_REASONING, golden)
    golden.write_text('{"question": "How much is it?", "must_contain": ["25 dollars"]}\n')
    remembered_check(file, reasoning_base, NO_REASONING, golden)
    assert len(checks) == 3, "another golden set is checked"
    assert remembered_check(file, reasoning_base, {}).problem is not None
    assert remembered_check(file, reasoning_base, {}).problem is not None
    assert len(checks) == 5, "a problem is never remembered"
