"""A version's artifact folder: weights, configuration, lineage, card. No user text, no path of any machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.trainer.runs import RunConfig
from services.trainer.store import sync_folder, write_whole
from shared.events import canonical_json
from shared.versions import DatasetRef, Figure, GateReport, version_name

ARTIFACT = "artifact"
WEIGHTS = ("adapter_model.safetensors", "adapter_config.json")


def write_artifact(folder: Path, config: RunConfig, dataset: DatasetRef, report: GateReport) -> Path:
    """Makes `folder/artifact` from `folder/adapter`; complete, then there. One made before is replaced."""
    staging, target = folder / f".{ARTIFACT}.incoming", folder / ARTIFACT
    for old in (staging, target):
        shutil.rmtree(old, ignore_errors=True)
    staging.mkdir()
    for name in WEIGHTS:
        shutil.copyfile(folder / "adapter" / name, staging / name)
    lineage = {
        "line": config.line,
        "run_id": config.run_id,
        "base": version_name(config.line, None, config.base_digest),
        "base_digest": config.base_digest,
        "dataset_digest": dataset.digest,
        "recipe": config.recipe.model_dump(mode="json"),
    }
    write_whole(staging / "loopwright.json", canonical_json(lineage))
    write_whole(staging / "README.md", card(config, dataset, report).encode())
    staging.rename(target)
    sync_folder(folder)
    return target


def card(config: RunConfig, dataset: DatasetRef, report: GateReport) -> str:
    """What it is, from what, how it was tested."""
    recipe = config.recipe
    through = ", ".join(f"{part}: {number}" for part, number in sorted(dataset.through.items())) or "none"
    reasons = "\n".join(f"- {reason}" for reason in report.reasons)
    figures = "\n".join(_line(figure) for figure in report.figures)
    return f"""# A version of {config.line}

A LoRA adapter (rank {recipe.rank}, all linear layers) on `{config.base_name}`, digest `{config.base_digest[:8]}`.

| lineage | |
| --- | --- |
| run | `{config.run_id}` of {config.created_at:%Y-%m-%d %H:%M} UTC |
| dataset | `{dataset.digest[:8]}`: {dataset.examples} corrections of {dataset.users} users, {dataset.tokens} tokens |
| batches read (partition: highest number) | {through} |
| recipe | SFT on the answer's tokens, {recipe.epochs:g} epochs, learning rate {recipe.learning_rate:g}, \
batch {recipe.batch_size}, seed {recipe.seed}; replay of the base's own answers |

## Gate: {report.verdict}, against `{report.gated_against}`

{reasons}

| figure | n | value | 95 % interval | before | bound |
| --- | --- | --- | --- | --- | --- |
{figures}
"""


def _line(figure: Figure) -> str:
    interval = "" if figure.low is None else f"{figure.low:.3f} to {_shown(figure.high)}"
    cells = (
        figure.name,
        figure.n,
        _shown(figure.value),
        interval,
        _shown(figure.baseline),
        _shown(figure.bound),
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
