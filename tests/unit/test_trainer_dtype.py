"""Data type of a run: the faster one on this machine, chosen once per run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.trainer.base import dtype
from services.trainer.core.recipe import Recipe
from services.trainer.run import environment
from services.trainer.settings import TrainerSettings
from shared.settings import load


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    return folder


def set_matmul_seconds(monkeypatch: pytest.MonkeyPatch, bfloat16: float, float32: float) -> None:
    times = {torch.bfloat16: bfloat16, torch.float32: float32}
    monkeypatch.setattr(dtype, "matmul_seconds", lambda dtype: times[dtype])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("bfloat16", "float32", "chosen"),
    [(1.0, 1.0, "bfloat16"), (2.0, 1.0, "float32"), (1.1, 1.0, "bfloat16"), (0.1, 1.0, "bfloat16")],
)
def test_float32_is_chosen_if_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, base: Path, bfloat16: float, float32: float, chosen: str
) -> None:
    set_matmul_seconds(monkeypatch, bfloat16, float32)
    assert dtype.fastest(base) == chosen


def test_base_that_is_large_for_the_memory_uses_bfloat16(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    set_matmul_seconds(monkeypatch, 2.0, 1.0)
    monkeypatch.setattr(dtype, "memory_bytes", lambda: 8000)
    assert dtype.fastest(base) == "float32"
    monkeypatch.setattr(dtype, "memory_bytes", lambda: 7999)
    assert dtype.fastest(base) == "bfloat16"


def test_run_keeps_the_data_type_that_was_chosen_first(
    monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path
) -> None:
    set_matmul_seconds(monkeypatch, 2.0, 1.0)
    assert dtype.choose_for_run(tmp_path, "auto", base) == "float32"
    set_matmul_seconds(monkeypatch, 1.0, 1.0)
    assert dtype.choose_for_run(tmp_path, "auto", base) == "float32"
    assert dtype.of_run(tmp_path) == "float32"


def test_data_type_from_settings_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path
) -> None:
    set_matmul_seconds(monkeypatch, 2.0, 1.0)
    assert dtype.choose_for_run(tmp_path, "bfloat16", base) == "bfloat16"
    monkeypatch.setenv("LOOPWRIGHT_TRAINER_DTYPE", "float32")
    assert load(TrainerSettings).recipe().dtype == "float32"


def test_environment_names_the_data_type(tmp_path: Path, base: Path) -> None:
    recipe = Recipe(dtype="float32")
    assert environment.current(tmp_path, recipe)["machine"]["dtype"] == "bfloat16"
    dtype.choose_for_run(tmp_path, recipe.dtype, base)
    assert environment.current(tmp_path, recipe)["machine"]["dtype"] == "float32"


def test_environments_differ_by_their_data_type() -> None:
    def environment_in(dtype: str) -> environment.Environment:
        return {"software": {}, "machine": {"dtype": dtype}}

    assert environment.differences([environment_in("bfloat16")], environment_in("bfloat16")) == []
    assert environment.differences([environment_in("bfloat16")], environment_in("float32")) == [
        "dtype bfloat16 then, float32 now"
    ]


def test_measuring_restores_the_number_of_threads(base: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert dtype.fastest(base) in {"bfloat16", "float32"}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert dtype.matmul_seconds(torch.float32) > 0
    assert dtype.matmul_seconds(torch.bfloat16) > 0
