"""The model card: front matter for Hugging Face, data, recipe and gate; no user text and no path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import metadata_load

from services.trainer.dataset import data_card
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.run import environment, resolved
from services.trainer.run.environment import Environment
from services.trainer.versions.model_card import base_licence, write_artifact
from tests.trainer_factories import dataset_ref, grouped, row
from tests.trainer_rows import resolved_recipe
from tests.unit.test_trainer_publish import REPORT, run

HERE: Environment = {"software": {"torch": "2.9"}, "machine": {"processor": "A processor", "threads": 2}}
SECRET = "Zanzibarquux"


def write_card(folder: Path, licence: str = "", **changes: Any) -> str:
    """Write the artifact of a run that has all its files, and return its model card. `changes`: of its config."""
    base = folder / "the-base"
    base.mkdir()
    (base / "README.md").write_text(f"---\nlanguage: en\n{licence}\n---\n# The base")
    rows = grouped([row(f"Who is {SECRET}?", f"It is {SECRET}.", f"user-{n}", f"r{n}") for n in range(3)])
    config = run("run-1")
    config = replace(config, base=str(base), **changes)
    taken = Snapshot(tuple(rows), (), ())
    data_card.write(
        folder,
        data_card.build_card(
            config.line,
            config.run_id,
            config.created_at,
            config.recipe,
            taken,
            data_card.ExamplesRead(),
            [(4, 6)] * 3,
        ),
    )
    environment.record(folder, HERE)
    resolved.write(folder, resolved_recipe())
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"w")
    return (write_artifact(folder, config, dataset_ref(), REPORT) / "README.md").read_text()


def front_matter(folder: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = metadata_load(folder / "artifact" / "README.md") or {}
    return metadata


def test_front_matter_names_base_licence_and_verdict(tmp_path: Path) -> None:
    write_card(tmp_path, "license: apache-2.0")
    metadata = front_matter(tmp_path)
    assert (metadata["base_model"], metadata["license"], metadata["library_name"]) == (
        "tiny",
        "apache-2.0",
        "peft",
    )
    assert metadata["pipeline_tag"] == "text-generation"
    assert "gate-passed" in metadata["tags"]


def test_unknown_licence_of_the_base_is_not_guessed(tmp_path: Path) -> None:
    text = write_card(tmp_path)
    assert (front_matter(tmp_path)["license"], front_matter(tmp_path)["license_name"]) == (
        "other",
        "as-the-base",
    )
    assert "that of the base: see its model card" in text
    assert base_licence(tmp_path / "nowhere")["license"] == "other"


def test_card_says_why_a_run_without_new_data_was_made(tmp_path: Path) -> None:
    for name, changes, line in (
        ("again", {"again": True}, "train now --again"),
        ("erased", {"replaces": "erasure"}, "because rows that it was trained on were erased"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        assert line in write_card(folder, **changes)
    (tmp_path / "plain").mkdir()
    plain = write_card(tmp_path / "plain")
    assert "--again" not in plain
    assert "erased" not in plain.lower()


def test_card_has_data_recipe_and_environment(tmp_path: Path) -> None:
    text = write_card(tmp_path)
    for line in (
        "| rows trained on | 3 |",
        "| users | 3 |",
        "| kinds of feedback | correction 3 |",
        "| learning_rate | 0.002 |",
        "| tokens_per_step | 640 |",
        "| replay_prompts | 400 |",
        "| torch | 2.9 |",
        "| processor | A processor |",
        "| win_rate | 31 | 0.900 | 0.750 to 0.970 |  | 0.500 |",
    ):
        assert line in text


def test_card_contains_no_user_text_and_no_path(tmp_path: Path) -> None:
    text = write_card(tmp_path)
    assert SECRET not in text and "user-0" not in text
    assert str(tmp_path) not in text
