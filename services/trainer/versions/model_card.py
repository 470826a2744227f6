"""Artifact folder of a version: weights, configuration, lineage and model card. No user text, no path of a machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from services.trainer.dataset import data_card
from services.trainer.dataset.data_card import DataCard
from services.trainer.files import sync_folder, sync_tree, write_whole
from services.trainer.run import environment, resolved
from services.trainer.run.environment import Environment
from services.trainer.run.folder import ADAPTER, ARTIFACT
from services.trainer.run.run_table import RunConfig
from shared.adapters.artifact_manifest import LINEAGE_FILE
from shared.events import canonical_json
from shared.versions import DatasetRef, GateReport, version_name

ADAPTER_FILES: Final = ("adapter_model.safetensors", "adapter_config.json")
"""Files of an adapter. A whole model has others."""
LICENCE_OF_BASE: Final = "as-the-base"
"""Name of the licence if the base's folder does not state one."""


def write_artifact(folder: Path, config: RunConfig, dataset: DatasetRef, report: GateReport) -> Path:
    """Write `artifact/` in the run's folder from `adapter/`, and replace an earlier one. It appears when complete."""
    staging, target = folder / f".{ARTIFACT}.incoming", folder / ARTIFACT
    for old in (staging, target):
        shutil.rmtree(old, ignore_errors=True)
    staging.mkdir()
    for path in sorted((folder / ADAPTER).iterdir()):
        shutil.copyfile(path, staging / path.name)
    environments = environment.read(folder)
    trained_with = resolved.read(folder)
    values = {} if trained_with is None else trained_with.model_dump(mode="json")
    lineage = {
        "line": config.line,
        "run_id": config.run_id,
        "base": version_name(config.line, None, config.base_digest),
        "base_digest": config.base_digest,
        "dataset_digest": dataset.digest,
        "recipe": config.recipe.model_dump(mode="json"),
        "chat_template_kwargs": dict(config.chat_template_kwargs),
        "trained_with": values,
        "environments": environments,
    }
    write_whole(staging / LINEAGE_FILE, canonical_json(lineage))
    licence = base_licence(Path(config.base))
    card = render_card(config, dataset, report, data_card.read(folder), environments, licence, values)
    write_whole(staging / "README.md", card.encode())
    sync_tree(staging)
    staging.rename(target)
    sync_folder(folder)
    return target


def base_licence(base: Path) -> dict[str, str]:
    """Return the licence fields of the base's own model card. A version has the licence of its base."""
    card = base / "README.md"
    metadata: Mapping[str, Any] = (metadata_load(card) or {}) if card.exists() else {}
    names = ("license", "license_name", "license_link")
    fields = {name: str(metadata[name]) for name in names if isinstance(metadata.get(name), str)}
    return fields if "license" in fields else {"license": "other", "license_name": LICENCE_OF_BASE}


def render_card(
    config: RunConfig,
    dataset: DatasetRef,
    report: GateReport,
    data: DataCard | None,
    environments: Sequence[Environment],
    licence: Mapping[str, str],
    trained_with: Mapping[str, Any],
) -> str:
    """Return a version's model card in the format of Hugging Face.

    Args:
        config: Configuration of the version's run.
        dataset: The snapshot that was trained.
        report: The gate's report.
        data: Statistics of the snapshot, if the run has them.
        environments: Environments that the run trained in, oldest first.
        licence: The result of `base_licence`.
        trained_with: Values that the recipe was resolved to, derived ones included.

    """
    recipe = {**config.recipe.model_dump(mode="json"), **trained_with}
    parts = [
        f"---\n{_front_matter(config, report, licence)}\n---\n",
        f"# A version of {config.line}\n",
        _summary(config, licence),
        _lineage(config, dataset),
        _table("Recipe", ("setting", "value"), sorted(recipe.items())),
        _data(data),
        _table("Training environment", ("property", "value"), _environment_rows(environments)),
        _gate(report),
        _limits(config),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(config: RunConfig, report: GateReport, licence: Mapping[str, str]) -> str:
    method = config.recipe.method
    fields: dict[str, Any] = {
        "base_model": config.base_name,
        "library_name": "peft" if method == "lora" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["loopwright", method, f"gate-{report.verdict}"],
    }
    return str(ModelCardData(**(fields | dict(licence))).to_yaml())


def _summary(config: RunConfig, licence: Mapping[str, str]) -> str:
    name = licence.get("license_name") or licence.get("license")
    use = "Serve it on exactly this base." if config.recipe.method == "lora" else "It is a whole model."
    terms = "that of the base: see its model card" if name == LICENCE_OF_BASE else f"{name}, as for the base"
    return f"""Trained from `{config.base_name}` (digest `{config.base_digest[:8]}`) on users' feedback about its \
answers. {use} Licence: {terms}.
"""


def _lineage(config: RunConfig, dataset: DatasetRef) -> str:
    through = ", ".join(f"{part}: {number}" for part, number in sorted(dataset.through.items())) or "none"
    rows = [
        ("run", f"`{config.run_id}`, started {config.created_at:%Y-%m-%d %H:%M} UTC"),
        (
            "dataset",
            f"`{dataset.digest[:8]}`: {dataset.examples} rows of {dataset.users} users, {dataset.tokens} tokens",
        ),
        ("batches read (partition: highest number)", through),
        ("compared with", f"`{config.stable.version}`"),
    ]
    if config.chat_template_kwargs:
        rows.append(("arguments of the chat template", f"`{json.dumps(dict(config.chat_template_kwargs))}`"))
    if config.again:
        rows.append(("ordered", "`loopwright train now --again`, whether or not anything was new"))
    if config.replaces == "erasure":
        rows.append(
            ("replaces", f"`{config.stable.version}`, because rows that it was trained on were erased")
        )
    return (
        _table("Lineage", ("", ""), rows)
        + "\n`loopwright lineage VERSION` lists the feedback events behind it that still exist.\n"
    )


def _data(data: DataCard | None) -> str:
    if data is None:
        return ""
    replay = data.replay
    rows = [
        ("rows trained on", data.training.rows),
        ("users", data.training.users),
        ("kinds of feedback", _counts(data.training.kinds)),
        ("distinct questions", data.training.questions),
        ("largest share of one user", f"{data.training.largest_user_share:.1%}"),
        ("rows of held-out users, for evaluation", data.measuring.rows),
        ("tokens, each row once", data.tokens.all),
        (
            "replay of the base's own answers",
            f"at least {replay.least_share:.0%} of the tokens"
            if replay.share is None
            else f"{replay.share:.1%}",
        ),
        ("quarantined", f"{sum(data.held.values())}: {_counts(data.held)}" if data.held else "nothing"),
    ]
    return _table("Data", ("statistic", "value"), rows)


def _environment_rows(environments: Sequence[Environment]) -> list[tuple[str, Any]]:
    if not environments:
        return [("software", "not recorded")]
    last = environments[-1]
    rows: list[tuple[str, Any]] = [*last["software"].items(), *last["machine"].items()]
    if len(environments) > 1:
        rows.append(("environments", f"{len(environments)}, because training was resumed; this is the last"))
    return rows


def _gate(report: GateReport) -> str:
    reasons = "\n".join(f"- {reason}" for reason in report.reasons)
    rows = [
        (
            figure.name,
            figure.n,
            _number(figure.value),
            "" if figure.low is None else f"{figure.low:.3f} to {_number(figure.high)}",
            _number(figure.baseline),
            _number(figure.bound),
        )
        for figure in report.figures
    ]
    table = _table("", ("metric", "n", "value", "95 % interval", "baseline", "limit"), rows)
    return f"## Gate: {report.verdict}, compared with `{report.gated_against}`\n\n{reasons}\n{table}"


def _limits(config: RunConfig) -> str:
    return f"""## Limits

Evaluated only on questions of held-out users of this application, and on Loopwright's general and safety prompts. \
Mistakes of `{config.base_name}` that no user corrected remain.
"""


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"## {title}\n"] if title else [""]
    lines += [_row(headings), _row(["---"] * len(headings)), *map(_row, rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
