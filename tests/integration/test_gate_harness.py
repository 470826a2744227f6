"""Tasks of lm-evaluation-harness at the gate, with a package that has the functions of the real one.

The real package is not installed: the fake has the signature of its `simple_evaluate` and the fields of its samples.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.trainer.core.recipe import Recipe
from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.harness import (
    HarnessFailed,
    HarnessResults,
    evaluate_version,
    model_args,
    require_harness,
)
from services.trainer.gate.harness_process import right_by_sample
from services.trainer.gate.harness_run import run_harness
from services.trainer.gate.metrics.harness import HARNESS
from services.trainer.gate.metrics.metric import JudgeOptions
from services.trainer.run.folder import ADAPTER
from tests.integration.test_trainer_gate import RECIPE, run_context

FAKE = """
import json, os
from pathlib import Path

def simple_evaluate(
    model, model_args=None, tasks=None, num_fewshot=None, batch_size=None, max_batch_size=None, device=None,
    use_cache=None, cache_requests=False, rewrite_requests_cache=False, delete_requests_cache=False, limit=None,
    samples=None, bootstrap_iters=100000, check_integrity=False, write_out=False, log_samples=True,
    evaluation_tracker=None, system_instruction=None, apply_chat_template=False, fewshot_as_multiturn=True,
    gen_kwargs=None, task_manager=None, verbosity=None, predict_only=False, random_seed=0, numpy_random_seed=1234,
    torch_random_seed=1234, fewshot_random_seed=1234, confirm_run_unsafe_code=False, metadata=None,
):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(json.dumps([model, model_args, device]) + "\\n")
    if "broken" in tasks:
        raise RuntimeError("the data set cannot be downloaded")
    worse = 12 if "peft" in model_args else 0
    def sample(i, filter_):
        return {"doc_id": i, "filter": filter_, "metrics": ["length", "exact_match"], "length": 7.5,
                "exact_match": float(i >= worse or filter_ == "flexible"), "doc": {}, "resps": []}
    return {
        "results": {},
        "samples": {task: [sample(i, f) for i in range(40) for f in ("strict", "flexible")] for task in tasks},
    }
"""
TASKS = """
class TaskManager:
    @property
    def all_tasks(self):
        return ["gsm8k", "ifeval", "broken"]
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the fake package. Returns the file in which it records its calls."""
    package = tmp_path / "packages" / "lm_eval"
    (package / "tasks").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    (package / "tasks" / "__init__.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=":")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def models_asked(calls: Path) -> list[dict[str, Any]]:
    return [json.loads(line)[1] for line in calls.read_text().splitlines()]


def test_missing_package_stops_the_start() -> None:
    require_harness(())
    with pytest.raises(Exception, match="needs the package lm_eval, which is not installed"):
        require_harness(("ifeval",))


def test_unknown_task_stops_the_start(calls: Path) -> None:
    require_harness(("ifeval", "gsm8k"))
    with pytest.raises(Exception, match="lm_eval has no task ifevil"):
        require_harness(("ifeval", "ifevil"))
    assert not calls.exists()


@pytest.mark.parametrize("text", ["ifeval", "ifeval,gsm8k", "", "mmlu/x-1.0"])
def test_setting_lists_names_of_tasks(text: str) -> None:
    assert Recipe(gate_lm_eval=text).lm_eval_tasks == tuple(filter(None, text.split(",")))
    for invalid in ("a,,b", "a b", "a;b", ","):
        with pytest.raises(ValueError, match="gate_lm_eval"):
            Recipe(gate_lm_eval=invalid)


def test_gate_compares_all_versions_and_repeats_none(tiny_model: Path, tmp_path: Path, calls: Path) -> None:
    context = run_context(tiny_model, tmp_path / "run")
    context = replace_recipe(context, RECIPE.model_copy(update={"gate_lm_eval": "ifeval,gsm8k"}))
    adapter = context.folder / ADAPTER
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_config.json").write_text("{}")
    found = run_harness(context, adapter, None, context.folder)
    assert found["stable"] == found["base"]
    assert set(found["stable"].pairs) == {"ifeval", "gsm8k"}
    assert found["stable"].pairs["ifeval"] == [(i >= 12, True) for i in range(40)]
    asked = models_asked(calls)
    assert [args.get("peft") for args in asked] == [str(adapter), None]
    assert {args["pretrained"] for args in asked} == {str(tiny_model)}
    assert run_harness(context, adapter, None, context.folder) == found
    assert len(models_asked(calls)) == 2
    values = HARNESS.measure(EvalSet(), EvalOutputs(harness=found["stable"]))
    judgement = HARNESS.judge(values, JudgeOptions(min_items=30))
    assert judgement.failures == ["lm_eval gsm8k fell by 30.0 points", "lm_eval ifeval fell by 30.0 points"]


def replace_recipe(context: Any, recipe: Recipe) -> Any:
    return replace(context, config=replace(context.config, recipe=recipe))


def test_failure_of_the_harness_makes_the_gate_inconclusive(
    tiny_model: Path, tmp_path: Path, calls: Path
) -> None:
    context = replace_recipe(
        run_context(tiny_model, tmp_path / "run"), RECIPE.model_copy(update={"gate_lm_eval": "broken"})
    )
    found = run_harness(context, context.folder / ADAPTER, None, context.folder)
    assert found["stable"] == HarnessResults(error="RuntimeError: the data set cannot be downloaded")
    judgement = HARNESS.judge(found["stable"], JudgeOptions(min_items=30))
    assert judgement.doubts == ["lm_eval gave no result: RuntimeError: the data set cannot be downloaded"]
    assert calls.exists()


def test_run_that_stops_ends_the_process(tiny_model: Path, tmp_path: Path, calls: Path) -> None:
    args = model_args(tiny_model, None, "float32", "none")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_version(args, ["ifeval"], "cpu", tmp_path / "scores.json", "base", stop)
    assert not (tmp_path / "scores.json").exists()
    with pytest.raises(HarnessFailed, match="cannot be downloaded"):
        evaluate_version(args, ["broken"], "cpu", tmp_path / "scores.json", "base", lambda: None)
    assert calls.exists()


def test_versions_are_given_as_the_harness_takes_them(tmp_path: Path) -> None:
    adapter, whole = tmp_path / "adapter", tmp_path / "whole"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    base = {"pretrained": "/base", "dtype": "bfloat16", "trust_remote_code": False}
    assert model_args(Path("/base"), None, "bfloat16", "none") == base
    assert model_args(Path("/base"), adapter, "bfloat16", "none") == base | {"peft": str(adapter)}
    assert model_args(Path("/base"), whole, "bfloat16", "4bit") == base | {
        "pretrained": str(whole),
        "tokenizer": "/base",
        "load_in_4bit": True,
    }


def test_task_without_a_metric_per_sample_names_the_remedy() -> None:
    sample = {"doc_id": 0, "filter": "none", "metrics": ["bleu"], "bleu": 0.3}
    with pytest.raises(ValueError, match="the task wmt has no metric that is 0 or 1 for each sample"):
        right_by_sample("wmt", [sample])
    assert right_by_sample("acc", [sample | {"metrics": ["bleu", "acc"], "acc": 1}]) == {"0": True}
