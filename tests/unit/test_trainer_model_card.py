"""The model card: front matter that Hugging Face reads, what it was made from, how it was tested; no text, no path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.repocard import metadata_load

from services.trainer.dataset import data_card
from services.trainer.dataset.snapshot import Snapshot
from services.trainer.run import environment
from services.trainer.run.environment import Environment
from services.trainer.versions.model_card import base_licence, render_card, write_artifact
from tests.trainer_factories import dataset_ref, grouped, row
from tests.unit.test_trainer_publish import REPORT, run

HERE: Environment = {"software": {"torch": "2.9"}, "machine": {"processor": "A processor", "threads": 2}}
SECRET = "Zanzibarquux"


def made(folder: Path, licence: str = "") -> str:
    """The card of a run that has all its files."""
    base = folder / "the-base"
    base.mkdir()
    (base / "README.md").write_text(f"---\nlanguage: en\n{licence}\n---\n# The base")
    rows = grouped([row(f"Who is {SECRET}?", f"It is {SECRET}.", f"user-{n}", f"r{n}") for n in range(3)])
    config = run("run-1")
    config = type(config)(
        **{name: getattr(config, name) for name in config.__slots__} | {"base": str(base)}  # type: ignore[arg-type]
    )
    taken = Snapshot(tuple(rows), (), ())
    data_card.write(
        folder,
        data_card.build_card(
            config.line, config.run_id, config.created_at, config.recipe, taken, [], [(4, 6)] * 3
        ),
    )
    environment.record(folder, HERE)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"w")
    return (write_artifact(folder, config, dataset_ref(), REPORT) / "README.md").read_text()


def front(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = metadata_load(folder / "artifact" / "README.md") or {}
    return found


def test_its_front_matter_names_base_licence_and_verdict(tmp_path: Path) -> None:
    made(tmp_path, "license: apache-2.0")
    told = front(tmp_path)
    assert (told["base_model"], told["license"], told["library_name"]) == ("tiny", "apache-2.0", "peft")
    assert told["pipeline_tag"] == "text-generation"
    assert "gate-passed" in told["tags"]


def test_a_base_that_says_no_licence_leaves_it_open_instead_of_naming_one(tmp_path: Path) -> None:
    text = made(tmp_path)
    assert (front(tmp_path)["license"], front(tmp_path)["license_name"]) == ("other", "as-the-base")
    assert "its base's: see there" in text
    assert base_licence(tmp_path / "nowhere")["license"] == "other"


def test_it_counts_the_data_names_the_recipe_and_the_software(tmp_path: Path) -> None:
    text = made(tmp_path)
    for line in (
        "| rows that train | 3 |",
        "| users | 3 |",
        "| kinds | correction 3 |",
        "| learning_rate | 0.0015 |",
        "| torch | 2.9 |",
        "| processor | A processor |",
        "| win_rate | 31 | 0.900 | 0.750 to 0.970 |  | 0.500 |",
    ):
        assert line in text


def test_it_holds_no_word_of_users_and_no_path(tmp_path: Path) -> None:
    text = made(tmp_path)
    assert SECRET not in text and "user-0" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("part", ["## Data", "## Gate: passed"])
def test_a_run_of_an_older_release_has_a_card_without_what_it_does_not_know(part: str) -> None:
    text = render_card(run("run-1"), dataset_ref(), REPORT)
    assert (part in text) is (part != "## Data")
    assert "not noted" in text
