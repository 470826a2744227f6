"""A version's artifact folder: weights, configuration, lineage, card. No user text, no path of any machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from services.trainer.dataset import data_card
from services.trainer.dataset.data_card import DataCard
from services.trainer.files import sync_folder, sync_tree, write_whole
from services.trainer.run import environment
from services.trainer.run.environment import Environment
from services.trainer.run.folder import ARTIFACT
from services.trainer.run.run_table import RunConfig
from shared.events import canonical_json
from shared.versions import DatasetRef, GateReport, version_name

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
"""Of an adapter; a whole model has others."""
LINEAGE_FILE = "loopwright.json"
LICENCE_OF_BASE: Final = "as-the-base"
"""The licence where the base's folder does not say which."""


def write_artifact(folder: Path, config: RunConfig, dataset: DatasetRef, report: GateReport) -> Path:
    """Makes `folder/artifact` from `folder/adapter`; complete, then there. One made before is replaced."""
    staging, target = folder / f".{ARTIFACT}.incoming", folder / ARTIFACT
    for old in (staging, target):
        shutil.rmtree(old, ignore_errors=True)
    staging.mkdir()
    for path in sorted((folder / "adapter").iterdir()):
        shutil.copyfile(path, staging / path.name)
    seen = environment.read(folder)
    lineage = {
        "line": config.line,
        "run_id": config.run_id,
        "base": version_name(config.line, None, config.base_digest),
        "base_digest": config.base_digest,
        "dataset_digest": dataset.digest,
        "recipe": config.recipe.model_dump(mode="json"),
        "environments": seen,
    }
    write_whole(staging / LINEAGE_FILE, canonical_json(lineage))
    told = render_card(config, dataset, report, data_card.read(folder), seen, base_licence(Path(config.base)))
    write_whole(staging / "README.md", told.encode())
    sync_tree(staging)
    staging.rename(target)
    sync_folder(folder)
    return target


def base_licence(base: Path) -> dict[str, str]:
    """What the base's own card says of its licence, as front matter. A version is under its base's."""
    file = base / "README.md"
    told: Mapping[str, Any] = (metadata_load(file) or {}) if file.exists() else {}
    names = ("license", "license_name", "license_link")
    found = {name: str(told[name]) for name in names if isinstance(told.get(name), str)}
    return found if "license" in found else {"license": "other", "license_name": LICENCE_OF_BASE}


def render_card(
    config: RunConfig,
    dataset: DatasetRef,
    report: GateReport,
    data: DataCard | None = None,
    environments: Sequence[Environment] = (),
    licence: Mapping[str, str] | None = None,
) -> str:
    """What it is, from what, how it was tested: a model card as Hugging Face has them. `data` and `environments` are
    absent for runs that an older release began."""
    licence = licence or base_licence(Path(config.base))
    parts = [
        f"---\n{_front_matter(config, report, licence)}\n---\n",
        f"# A version of {config.line}\n",
        _what_it_is(config, licence),
        _lineage(config, dataset),
        _table("Recipe", ("setting", "value"), sorted(config.recipe.model_dump(mode="json").items())),
        _data(data),
        _table("Trained with", ("what", "value"), _trained_with(environments)),
        _gate(report),
        _limits(config),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(config: RunConfig, report: GateReport, licence: Mapping[str, str]) -> str:
    method = config.recipe.method
    named: dict[str, Any] = {
        "base_model": config.base_name,
        "library_name": "peft" if method == "lora" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["loopwright", method, f"gate-{report.verdict}"],
    }
    return str(ModelCardData(**(named | dict(licence))).to_yaml())


def _what_it_is(config: RunConfig, licence: Mapping[str, str]) -> str:
    name = licence.get("license_name") or licence.get("license")
    over = "Serve it over exactly this base." if config.recipe.method == "lora" else "It is a whole model."
    under = "its base's: see there" if name == LICENCE_OF_BASE else f"{name}, as its base's"
    return f"""Made from `{config.base_name}` (digest `{config.base_digest[:8]}`) by training on what users said of \
its answers. {over} Licence: {under}.
"""


def _lineage(config: RunConfig, dataset: DatasetRef) -> str:
    through = ", ".join(f"{part}: {number}" for part, number in sorted(dataset.through.items())) or "none"
    rows = [
        ("run", f"`{config.run_id}` of {config.created_at:%Y-%m-%d %H:%M} UTC"),
        (
            "dataset",
            f"`{dataset.digest[:8]}`: {dataset.examples} rows of {dataset.users} users, {dataset.tokens} tokens",
        ),
        ("batches read (partition: highest number)", through),
        ("compared with", f"`{config.stable.version}`"),
    ]
    told = _table("Lineage", ("", ""), rows)
    return (
        told
        + "\n`loopwright lineage VERSION` follows it down to the events, where the rows are still kept.\n"
    )


def _data(data: DataCard | None) -> str:
    if data is None:
        return ""
    replay = data.replay
    rows = [
        ("rows that train", data.training.rows),
        ("users", data.training.users),
        ("kinds", _counted(data.training.kinds)),
        ("wordings of questions", data.training.questions),
        ("largest share of one user", f"{data.training.largest_user_share:.1%}"),
        ("rows of held-out users, that measure", data.measuring.rows),
        ("tokens, each row once", data.tokens.all),
        (
            "replay of the base's own answers",
            f"at least {replay.least_share:.0%} of the tokens"
            if replay.share is None
            else f"{replay.share:.1%}",
        ),
        ("held back", f"{sum(data.held.values())}: {_counted(data.held)}" if data.held else "nothing"),
    ]
    return _table("Data", ("figure", "value"), rows)


def _trained_with(environments: Sequence[Environment]) -> list[tuple[str, Any]]:
    if not environments:
        return [("software", "not noted")]
    last = environments[-1]
    rows = [*last.get("software", {}).items(), *last.get("machine", {}).items()]
    turns = len(environments)
    return [*rows, *([("turns", f"{turns}, under different ones; this is the last")] if turns > 1 else [])]


def _gate(report: GateReport) -> str:
    reasons = "\n".join(f"- {reason}" for reason in report.reasons)
    figures = [
        (
            figure.name,
            figure.n,
            _shown(figure.value),
            "" if figure.low is None else f"{figure.low:.3f} to {_shown(figure.high)}",
            _shown(figure.baseline),
            _shown(figure.bound),
        )
        for figure in report.figures
    ]
    headings = ("figure", "n", "value", "95 % interval", "before", "bound")
    table = _table("", headings, figures)
    return f"## Gate: {report.verdict}, against `{report.gated_against}`\n\n{reasons}\n{table}"


def _limits(config: RunConfig) -> str:
    return f"""## Limits

It was tested on questions of held-out users of this application and on the shipped general and safety sets, and on \
nothing else. What `{config.base_name}` gets wrong and nobody corrected, it gets wrong too.
"""


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"## {title}\n"] if title else [""]
    lines += [_row(headings), _row(["---"] * len(headings)), *map(_row, rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
