"""Too little memory while a real model evaluates: smaller batches, the same results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.trainer.base.base_answers import EVAL_PROMPTS, REPLAY_PROMPTS, SAFETY_PROMPTS, shipped_prompts
from services.trainer.base.memory import BatchLimit
from services.trainer.base.model import answer_losses, generate_with_endings, load_base
from services.trainer.base.tokenization import load_chat
from services.trainer.core.chat import Messages
from services.trainer.run import eval_batch
from services.trainer.run.folder import ADAPTER, DTYPE, GATE_PARTS, GATE_REPORT
from services.trainer.worker.pipeline import run_to_exit_code
from tests.integration.test_trainer_gate import RECIPE, null_adapter, run_context

PROMPTS: list[Messages] = [(("user", f"What is {n} plus {n * n}?"),) for n in range(12)]


@contextmanager
def room_for(model: Any, rows: int) -> Iterator[list[int]]:
    """Let the forward pass fail as a GPU does if it gets more than `rows` rows. Yields the sizes that failed."""
    failed: list[int] = []

    def check(_: Any, arguments: Any, named: dict[str, Any]) -> None:
        given = named.get("input_ids") if named.get("input_ids") is not None else arguments[0]
        if len(given) > rows:
            failed.append(len(given))
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield failed
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Any:
    return load_base(tiny_model, dtype="float32")


@pytest.mark.parametrize("rows", [1, 5])
def test_answers_and_losses_do_not_depend_on_memory(base: Any, tiny_model: Path, rows: int) -> None:
    chat = load_chat(tiny_model)
    answered = [(prompt, f"It is {n}.") for n, prompt in enumerate(PROMPTS)]
    answers, losses = (
        generate_with_endings(base, chat, PROMPTS, 6),
        answer_losses(base, chat, answered),
    )
    generate, score = BatchLimit(64), BatchLimit(16)
    with room_for(base, rows) as failed:
        assert generate_with_endings(base, chat, PROMPTS, 6, limit=generate) == answers
        assert answer_losses(base, chat, answered, limit=score) == pytest.approx(losses, rel=1e-4)
    assert failed[0] == len(PROMPTS)
    assert max(generate.rows, score.rows) <= rows


def test_gate_with_little_memory_reports_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.trainer.gate import stage  # noqa: PLC0415 - imports torch

    reports = []
    for name, rows in (("ample", 1000), ("little", 3)):
        context = run_context(tiny_model, tmp_path / name)
        (context.folder / DTYPE).write_text(json.dumps({"dtype": "float32"}))
        model = load_base(tiny_model, dtype="float32")
        monkeypatch.setattr(stage, "load_base", lambda *_, model=model: model)
        null_adapter(model, RECIPE, context.folder / ADAPTER, 1, 2.0)
        with room_for(model, rows):
            stage.gate_run(context)
        reports.append(json.loads((context.folder / GATE_REPORT).read_bytes()))
        assert (max(eval_batch.sizes(context.folder)) <= 3) == (name == "little")
    ample, little = reports
    assert ample["report"]["verdict"] == little["report"]["verdict"]
    assert ample["items"] == little["items"], "the same answers and scores"


def test_base_answers_go_on_with_less_memory_in_the_next_process(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = run_context(tiny_model, tmp_path)
    prompts = shipped_prompts(REPLAY_PROMPTS, 12)
    real = load_base(tiny_model, dtype="float32")
    monkeypatch.setattr("services.trainer.base.model.load_base", lambda *_: real)
    with room_for(real, 0):
        status = run_to_exit_code(context.folder, lambda: context.base_answers(prompts) and None)
    assert (status.name, eval_batch.sizes(context.folder)) == ("OUT_OF_MEMORY", (1, 4))
    with room_for(real, 1) as failed:
        again = context_of_next_process(context)
        assert len(again.base_answers(prompts)) == 12
    assert failed == [], "the size that failed is not tried again"


def context_of_next_process(context: Any) -> Any:
    """Return the context as a new process of the run would build it."""
    return type(context)(
        context.folder, context.config, context.settings, context.progress, context.stop
    )  # fmt: skip


def test_interrupted_gate_generates_only_what_is_missing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.trainer.gate import evaluation, stage  # noqa: PLC0415 - imports torch

    context = run_context(tiny_model, tmp_path)
    model = load_base(tiny_model)
    monkeypatch.setattr(stage, "load_base", lambda *_: model)
    null_adapter(model, RECIPE, context.folder / ADAPTER, 1, 2.0)
    context.base_answers([*shipped_prompts(EVAL_PROMPTS, 12), *shipped_prompts(SAFETY_PROMPTS, 4)])
    generate, calls = evaluation.generate_answers, 0

    def count(*arguments: Any) -> list[str]:
        nonlocal calls
        calls += 1
        return generate(*arguments)

    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(evaluation, "generate_answers", count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "score_likelihoods", fail)
        with pytest.raises(MemoryError):
            stage.gate_run(context)
    before = calls
    assert before > 0
    assert len(list((context.folder / GATE_PARTS).iterdir())) == before
    first = stage.gate_run(context_of_next_process(context))
    assert calls == before, "the answers of the interrupted process are used"
    stage.remove_answers(context.folder)
    assert not (context.folder / GATE_PARTS).exists()
    again = stage.gate_run(context_of_next_process(context))
    assert calls == 2 * before
    assert [figure.value for figure in again.figures] == [figure.value for figure in first.figures]
