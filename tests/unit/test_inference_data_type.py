"""The data type of the weights is the faster one on this processor, within its memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.inference.engine import data_type
from services.inference.engine.data_type import choose_dtype, layer_seconds


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    return tmp_path


def set_times(monkeypatch: pytest.MonkeyPatch, *, bfloat16: float, float32: float) -> None:
    times = {torch.bfloat16: bfloat16, torch.float32: float32}
    monkeypatch.setattr(data_type, "layer_seconds", times.__getitem__)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_named_type_is_taken_unmeasured(name: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_type, "layer_seconds", None)
    assert choose_dtype(name, base, "cpu") is getattr(torch, name)


@pytest.mark.parametrize(
    ("bfloat16", "expected"),
    [(0.2, torch.bfloat16), (1.1, torch.bfloat16), (1.3, torch.float32), (4.0, torch.float32)],
)
def test_float32_must_be_clearly_faster(
    bfloat16: float, expected: torch.dtype, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_times(monkeypatch, bfloat16=bfloat16, float32=1.0)
    assert choose_dtype("auto", base, "cpu") is expected


def test_large_base_stays_in_bfloat16(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_times(monkeypatch, bfloat16=4.0, float32=1.0)
    monkeypatch.setattr(data_type, "free_bytes", lambda _: 7_999)
    assert choose_dtype("auto", base, "cpu") is torch.bfloat16
    monkeypatch.setattr(data_type, "free_bytes", lambda _: 8_000)
    assert choose_dtype("auto", base, "cpu") is torch.float32


@pytest.mark.parametrize(("has_units", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_gpu_without_bfloat16_units_gets_float16(
    has_units: bool, expected: torch.dtype, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_units)
    assert choose_dtype("auto", base, "cuda") is expected


def test_times_are_measured() -> None:
    assert 0 < layer_seconds(torch.float32) < 10
