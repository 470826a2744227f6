"""The gate stage of a run: evaluate candidate and stable, decide the verdict, write the report."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import structlog

from services.trainer.base import dtype
from services.trainer.base.base_answers import (
    EVAL_PROMPTS,
    SAFETY_PROMPTS,
    Prompt,
    asked_at_gate,
    shipped_prompts,
    spread,
)
from services.trainer.base.model import load_base
from services.trainer.base.tokenization import is_rendered
from services.trainer.core.eval_size import SKILL_TOKENS
from services.trainer.dataset.chat_endpoint import Endpoint, EndpointConfig, open_client
from services.trainer.dataset.filters import GroupedRow
from services.trainer.files import write_whole
from services.trainer.gate.answer_length import with_answer_length
from services.trainer.gate.eval_set import EvalOutputs, EvalSet, JudgedTies
from services.trainer.gate.evaluation import evaluate, evaluate_against
from services.trainer.gate.golden import GoldenQuestion, read_golden_set, require_rendered
from services.trainer.gate.harness_run import run_harness
from services.trainer.gate.held_out_items import held_out_items
from services.trainer.gate.judge_model import JudgeModel, judge_ties
from services.trainer.gate.metrics import AGAINST_BASE, VOTING, Measurements, measure_all
from services.trainer.gate.metrics.metric import Json, JudgeOptions, Metric
from services.trainer.gate.model_pair import ModelPair, Side
from services.trainer.gate.report_html import page
from services.trainer.gate.report_json import report_json
from services.trainer.gate.skill_sets import SkillQuestion, SkillSet, read_skill_set
from services.trainer.gate.stored_answers import StoredAnswers
from services.trainer.gate.system_prompt import frequent_system_prompt, with_system_prompt
from services.trainer.gate.verdict import decide, votes_of
from services.trainer.run.context import RunContext, RunFailed
from services.trainer.run.folder import ADAPTER, GATE_ANSWERS, GATE_REPORT, GATE_REPORT_PAGE
from shared.adapters.artifacts import open_artifacts
from shared.chat_format import ChatFormat
from shared.errors import Misconfigured
from shared.versions import GateReport

log = structlog.get_logger(__name__)


def gate_run(context: RunContext, control: Path | None = None) -> GateReport:
    """Gate the run's adapter against the stable version, and against a control if there is one.

    Writes the report, which contains users' text, to the run's folder. Answers stay stored there (`StoredAnswers`) for
    a gate with a control, until `remove_answers`.

    Raises:
        RunFailed: The golden set cannot be read.
        RunStopped: The run was asked to stop.
    """
    return gate_adapter(context, context.folder / ADAPTER, context.folder, control)


def remove_answers(folder: Path) -> None:
    """Delete the stored answers of a gate that has decided."""
    StoredAnswers(folder, {}).remove()


def gate_adapter(context: RunContext, adapter: Path, folder: Path, control: Path | None = None) -> GateReport:
    """Gate any adapter on the run's base (or a whole model) with the run's held-out feedback, like `gate_run`."""
    config = context.config
    eval_set = build_eval_set(context)
    recipe = with_answer_length(config.recipe, _reference_lengths(context.chat, eval_set))
    stable = _stable_folder(context)
    harness = run_harness(context, adapter, stable, folder)
    quantization = context.quantization()
    base = load_base(Path(config.base), recipe.threads, dtype.of_run(context.folder), quantization)
    started = time.monotonic()
    options = JudgeOptions(
        min_items=recipe.gate_items,
        look=config.gate_look,
        replaces_erased=config.replaces == "erasure",
        shorter_margin=recipe.gate_shorter,
    )
    folders: dict[Side, Path | None] = {"candidate": adapter, "stable": stable}
    names: dict[Side, str] = {"candidate": "candidate", "stable": config.stable.version, "base": "base"}
    if control is not None:
        folders["control"], names["control"] = control, f"control {control.stat().st_mtime_ns}"
    stored = StoredAnswers(folder, names)
    progress, limits = context.progress_callback, context.eval_limits
    # Weights of 4 bits are never merged: the sum would be rounded to 4 bits, too.
    merged = quantization == "none" and merges_adapters(recipe.gate_adapters, base.device.type)
    with ModelPair(base, folders, recipe.threads, merged=merged) as models:
        outputs = evaluate(models, context.chat, eval_set, recipe, progress, limits, stored)

        def measure_against(side: Side, metrics: Sequence[Metric[Any]]) -> Measurements:
            both = evaluate_against(
                side, metrics, models, context.chat, eval_set, recipe, outputs, progress, limits, stored
            )
            if side == "base":
                both = replace(both, harness=harness["base"])
            return measure_all(eval_set, both, metrics)

        against_base = None if models.is_base("stable") else measure_against("base", AGAINST_BASE)
        against_control = None if control is None else measure_against("control", VOTING)
    outputs = replace(outputs, harness=harness["stable"], judge=_judged_ties(context, eval_set, outputs))
    report = decide(
        measure_all(eval_set, outputs),
        gated_against=config.stable.version,
        options=options,
        against_base=against_base,
        control=None if against_control is None else votes_of(against_control, options),
        seconds=time.monotonic() - started,
    )
    document = report_json(
        report,
        eval_set,
        outputs,
        line=config.line,
        run_id=config.run_id,
        answer_tokens=recipe.gate_answer_tokens,
    )
    write_report(folder, document)
    items = Counter(item.category for item in eval_set.corrections)
    items.update(item.category for item in eval_set.liked)
    log.info(
        "gate_decided",
        verdict=report.verdict,
        reasons=report.reasons,
        items=dict(items),
        answer_tokens=recipe.gate_answer_tokens,
    )
    return report


def merges_adapters(setting: Literal["auto", "merged", "separate"], device: str) -> bool:
    """Return whether versions are merged copies of the base. By default they are on a CPU."""
    return setting == "merged" or (setting == "auto" and device == "cpu")


def write_report(folder: Path, report: Json) -> None:
    """Write the report as JSON and as a page, and the answers to held-out corrections in a file of their own."""
    answers = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in report["items"])
    write_whole(folder / GATE_ANSWERS, answers.encode())
    write_whole(folder / GATE_REPORT_PAGE, page(report).encode())
    write_whole(folder / GATE_REPORT, (json.dumps(report, ensure_ascii=False, indent=1) + "\n").encode())


def build_eval_set(context: RunContext) -> EvalSet:
    """Return everything that both versions are evaluated on."""
    recipe, held_out = context.config.recipe, held_out_items(context)
    general = _general_prompts(context, held_out.rows)
    size = context.eval_size()
    safety = shipped_prompts(SAFETY_PROMPTS, size.safety)
    questions = {name: _skill_questions(context, name, size.skills) for name in SKILL_TOKENS}
    skills = {name: [one.as_prompt() for one in asked] for name, asked in questions.items()}
    of_general, of_harmless, *others = context.base_answers_of(
        asked_at_gate(recipe, size, general, safety, skills)
    )
    of_skills, of_draws = others[: len(SKILL_TOKENS)], others[len(SKILL_TOKENS) :]
    return EvalSet(
        corrections=held_out.answers.corrections,
        liked=held_out.answers.liked,
        given=held_out.answers.given,
        left_out=held_out.answers.left_out,
        pairs=held_out.pairs,
        general_prompts=general,
        general_base_answers=of_general,
        general_draws=of_draws[: size.draws],
        harmful_prompts=[prompt for prompt in safety if prompt.refuse],
        harmful_draws=of_draws[size.draws :],
        harmless_prompts=[prompt for prompt in safety if not prompt.refuse],
        harmless_base_answers=of_harmless,
        skills={
            name: SkillSet(name, questions[name], answers)
            for name, answers in zip(SKILL_TOKENS, of_skills, strict=True)
        },
        golden=_golden_set(context),
    )


def _judged_ties(context: RunContext, eval_set: EvalSet, outputs: EvalOutputs) -> JudgedTies | None:
    """Return what the judge model says about tied items, or None if no judge is set."""
    settings = context.settings
    if not settings.judge_url:
        return None
    config = EndpointConfig(
        settings.judge_url, settings.judge_key, settings.judge_timeout_s, settings.judge_limit
    )
    with open_client(config) as client:
        judge = JudgeModel(
            settings.judge_model,
            Endpoint(client, settings.judge_model, role="judge"),
            settings.judge_replies,
            60 * settings.judge_minutes,
            settings.judge_limit,
        )
        return judge_ties(eval_set, outputs, judge, context.progress_callback("gate: judge model"))


def _reference_lengths(chat: ChatFormat, eval_set: EvalSet) -> list[int]:
    """Return the tokens of the answers that users gave or liked, and of the golden references."""
    texts = [item.row.answer for item in eval_set.corrections]
    texts += [item.row.answer for item in eval_set.liked]
    texts += [question.line.reference for question in eval_set.golden if question.line.reference]
    return [len(chat.answer_ids(text)) for text in texts]


def _general_prompts(context: RunContext, held_out: Sequence[GroupedRow]) -> list[Prompt]:
    """Return the general prompts, half of them below the product's system prompt, if the template takes one."""
    prompts = shipped_prompts(EVAL_PROMPTS, context.config.recipe.gate_eval_prompts)
    system = frequent_system_prompt(held_out)
    conversation = (("system", system or ""), ("user", "?"))
    if system is None or not is_rendered(context.chat, conversation):
        return prompts
    return with_system_prompt(prompts, system, len(context.chat.prompt_ids(conversation)))


def _skill_questions(context: RunContext, name: str, count: int) -> list[SkillQuestion]:
    """Return `count` questions of a shipped set, without those that the base's template refuses.

    Some templates refuse a system prompt.
    """
    questions = spread(read_skill_set(name), count)
    return [one for one in questions if is_rendered(context.chat, one.as_prompt().messages)]


def _golden_set(context: RunContext) -> list[GoldenQuestion]:
    """Read the golden set. It was valid when the trainer started, but may have been changed since."""
    path = context.settings.golden
    if path is None:
        return []
    try:
        questions = read_golden_set(path)
        require_rendered(path, questions, context.chat)
    except Misconfigured as error:
        raise RunFailed(f"{error}. Correct the file, then start a new run.") from error
    return questions


def _stable_folder(context: RunContext) -> Path | None:
    """Return the folder of the stable version, or None if it is the base.

    Artifact collection keeps the stable version of an open run, so the folder stays.
    """
    stable = context.config.stable
    if stable.kind == "base":
        return None
    store = open_artifacts(context.settings.artifacts, context.settings.artifact_cache)
    return store.fetch(stable.uri, stable.digest)
