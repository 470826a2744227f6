"""Adapters before a vLLM server reads them: which are refused, and how their folder is written, held and deleted."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.inference.engine.vllm.adapter_check import base_shapes, check_adapter
from services.inference.engine.vllm.adapter_folder import ABANDONED_S, HOLD_EXPIRES_S, AdapterFolder
from shared.errors import BadArtifact
from tests.inference_factories import make_adapter

V1 = "assistant@v1-0123abcd"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapter") / "v1", 1)


@pytest.fixture
def copy(adapter: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in adapter.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def edit_weights(folder: Path, edit: Callable[[Weights], None]) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, folder / "adapter_model.safetensors")


def edit_config(folder: Path, **values: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def first(weights: Weights, side: str) -> str:
    return next(name for name in weights if f"lora_{side}" in name)


def set_value(value: float, dtype: torch.dtype) -> Callable[[Weights], None]:
    def edit(weights: Weights) -> None:
        name = first(weights, "B")
        weights[name] = weights[name].to(dtype)
        weights[name][0, 0] = value

    return edit


def widen(weights: Weights) -> None:
    name = first(weights, "A")
    weights[name] = torch.zeros(weights[name].shape[0], weights[name].shape[1] + 8)


def raise_rank(weights: Weights) -> None:
    name = first(weights, "A")
    weights[name] = torch.zeros(weights[name].shape[0] + 1, weights[name].shape[1])


def deepen(weights: Weights) -> None:
    for side in "AB":
        name = first(weights, side)
        weights[name.replace("layers.0", "layers.77")] = weights.pop(name)


def add_embedding(weights: Weights) -> None:
    weights["base_model.model.model.embed_tokens.weight"] = torch.zeros(4, 4)


def drop_side(weights: Weights) -> None:
    del weights[first(weights, "B")]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty folder": lambda folder: [file.unlink() for file in list(folder.iterdir())],
    "no config": lambda folder: (folder / "adapter_config.json").unlink(),
    "config is a list": lambda folder: (folder / "adapter_config.json").write_text("[]"),
    "config is not JSON": lambda folder: (folder / "adapter_config.json").write_text("{"),
    "other kind": lambda folder: edit_config(folder, peft_type="IA3"),
    "whole layers": lambda folder: edit_config(folder, modules_to_save=["lm_head"]),
    "trainable tokens": lambda folder: edit_config(folder, trainable_token_indices=[1]),
    "no rank": lambda folder: edit_config(folder, r=None),
    "other rank": lambda folder: edit_config(folder, r=8),
    "weights cut off": lambda folder: os.truncate(folder / "adapter_model.safetensors", 200),
    "no weights": lambda folder: edit_weights(folder, lambda weights: weights.clear()),
    "nan": lambda folder: edit_weights(folder, set_value(float("nan"), torch.float32)),
    "infinite bfloat16": lambda folder: edit_weights(folder, set_value(float("inf"), torch.bfloat16)),
    "nan float16": lambda folder: edit_weights(folder, set_value(float("nan"), torch.float16)),
    "other base's width": lambda folder: edit_weights(folder, widen),
    "other base's depth": lambda folder: edit_weights(folder, deepen),
    "ranks differ": lambda folder: edit_weights(folder, raise_rank),
    "no LoRA weight": lambda folder: edit_weights(folder, add_embedding),
    "only one side": lambda folder: edit_weights(folder, drop_side),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_adapter_that_cannot_be_served_is_refused(copy: Path, tiny_model: Path, damage: str) -> None:
    DAMAGES[damage](copy)
    with pytest.raises(BadArtifact, match=V1):
        check_adapter(V1, copy, base_shapes(tiny_model))


def to_half(weights: Weights) -> None:
    for name in weights:
        weights[name] = weights[name].to(torch.bfloat16)


@pytest.mark.parametrize("edit", [lambda _: None, to_half])
def test_adapter_of_this_base_is_accepted(
    copy: Path, tiny_model: Path, edit: Callable[[Weights], None]
) -> None:
    edit_weights(copy, edit)
    check_adapter(V1, copy, base_shapes(tiny_model))


def test_base_with_other_names_in_its_files_is_not_compared(copy: Path) -> None:
    check_adapter(V1, copy, {"language_model.layers.0.weight": (1, 1)})


# --- the folder ---------------------------------------------------------------------------------------------------


def test_only_the_needed_files_are_copied_and_all_can_read_them(copy: Path, tmp_path: Path) -> None:
    (copy / "adapter_model.bin").write_bytes(b"pickle")
    shared = AdapterFolder(tmp_path / "shared", "g1").add(V1, copy)
    assert {file.name for file in shared.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert shared.stat().st_mode & 0o777 == 0o755
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in shared.iterdir())


def test_half_a_copy_is_never_visible(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        AdapterFolder(tmp_path / "shared", "g1").add(V1, copy)
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {".holds", ".lock"}


def test_gateways_that_add_at_once_share_one_folder(copy: Path, tmp_path: Path) -> None:
    results: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda i=i: results.append(AdapterFolder(tmp_path / "s", f"g{i}").add(V1, copy))
        )
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(results)) == 1


def test_hold_of_a_dead_gateway_expires(copy: Path, tmp_path: Path) -> None:
    ours, dead = AdapterFolder(tmp_path / "shared", "ours"), AdapterFolder(tmp_path / "shared", "dead")
    folder = ours.add(V1, copy)
    dead.add(V1, copy)
    assert not ours.release(folder)
    hold = tmp_path / "shared" / ".holds" / folder.name / "dead"
    os.utime(hold, (time.time() - HOLD_EXPIRES_S - 1,) * 2)
    assert ours.release(folder)
    dead.refresh()
    assert not ours.release(folder)


def test_adapter_that_another_gateway_has_just_added_is_not_deleted(copy: Path, tmp_path: Path) -> None:
    ours, other = AdapterFolder(tmp_path / "shared", "ours"), AdapterFolder(tmp_path / "shared", "other")
    folder = ours.add(V1, copy)
    assert ours.release(folder)
    other.add(V1, copy)
    ours.delete(folder)
    assert folder.is_dir()


def test_adapter_is_abandoned_long_after_its_last_hold(copy: Path, tmp_path: Path) -> None:
    before, after = AdapterFolder(tmp_path / "shared", "before"), AdapterFolder(tmp_path / "shared", "after")
    assert after.abandoned() == []
    folder = before.add(V1, copy)
    long_ago = (time.time() - ABANDONED_S - 1,) * 2
    os.utime(folder, long_ago)
    assert before.abandoned() == after.abandoned() == []
    os.utime(tmp_path / "shared" / ".holds" / folder.name / "before", long_ago)
    assert after.abandoned() == [folder]
    after.delete(folder)
    assert list((tmp_path / "shared" / ".holds").iterdir()) == []
