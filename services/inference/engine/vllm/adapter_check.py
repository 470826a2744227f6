"""Checks of an adapter's files before any server reads them. Without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from services.inference.engine.adapter_files import CONFIG_FILE, WEIGHTS_FILE, layer_and_side
from shared.errors import BadArtifact

ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
"""The files of an adapter that servers get. Others, such as pickled weights, are never copied."""
FLOATS = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""Types of weights: the integer of the same size, and the exponent's bits, all set in infinities and NaN."""
Weights = list[tuple[str, dict[str, Any]]]
Shapes = Mapping[str, tuple[int, ...]]


def base_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the base's weights in floating point, by name, from the headers of its files."""
    shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                weight = weights.get_slice(name)
                if str(weight.get_dtype()).startswith(("F", "BF")):
                    shapes[name] = tuple(weight.get_shape())
    return shapes


def check_adapter(version: str, folder: Path, base: Shapes) -> None:
    """Require a LoRA adapter of linear layers of this base, with finite weights.

    vLLM does not check all of this: it ignores layers that the base does not have, and serves weights that are NaN.

    Args:
        version: The version's name, for the errors.
        folder: The adapter's files.
        base: Shapes of the base's weights, from `base_shapes`.

    Raises:
        BadArtifact: if the adapter cannot be read, or cannot be served on this base.

    """
    rank = _read_rank(version, folder)
    try:
        weights: Weights = deserialize(  # type: ignore[no-untyped-call]
            (folder / WEIGHTS_FILE).read_bytes()
        )
    except (OSError, SafetensorError) as error:
        raise BadArtifact(f"{version}: {WEIGHTS_FILE} cannot be read: {error}") from error
    if not weights:
        raise BadArtifact(f"{version}: {WEIGHTS_FILE} has no weights")
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, weight in weights:
        module, side = layer_and_side(version, name)
        if len(weight["shape"]) != 2:
            raise BadArtifact(f"{version}: {name} is not a LoRA weight of a linear layer")
        if weight["dtype"] not in FLOATS or not _is_finite(weight["dtype"], weight["data"]):
            raise BadArtifact(f"{version}: {name} has values that are not finite numbers")
        modules.setdefault(module, {})[side] = tuple(weight["shape"])
    for module, sides in modules.items():
        _check_rank(version, module, sides, rank)
    _check_fit(version, modules, base)


def _read_rank(version: str, folder: Path) -> int | None:
    """Return the rank of all layers, or None if layers differ. Raises `BadArtifact` for anything but a LoRA adapter."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        peft_type, rank = config["peft_type"], int(config["r"])
        replaced = config.get("modules_to_save") or config.get("trainable_token_indices")
        differs = bool(config.get("rank_pattern"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadArtifact(
            f"{version}: {CONFIG_FILE} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if peft_type != "LORA":
        raise BadArtifact(f"{version}: {CONFIG_FILE}: peft_type is {peft_type}; only LORA can be served")
    if replaced:
        raise BadArtifact(
            f"{version}: {CONFIG_FILE}: the adapter replaces whole layers (modules_to_save); only LoRA weights "
            "can be served"
        )
    return None if differs else rank


def _is_finite(dtype: str, data: bytes) -> bool:
    integer, exponent = FLOATS[dtype]
    mask = integer(exponent)
    return not bool(((np.frombuffer(data, dtype=integer) & mask) == mask).any())


def _check_rank(version: str, module: str, sides: dict[str, tuple[int, ...]], rank: int | None) -> None:
    if sides.keys() != {"A", "B"}:
        raise BadArtifact(f"{version}: {module} has only one of the weights lora_A and lora_B")
    ranks = {sides["A"][0], sides["B"][1]} | (set() if rank is None else {rank})
    if len(ranks) != 1:
        raise BadArtifact(f"{version}: {WEIGHTS_FILE} and {CONFIG_FILE} disagree about the rank of {module}")


def _check_fit(version: str, modules: dict[str, dict[str, tuple[int, ...]]], base: Shapes) -> None:
    """Compare with the base's layers. LoRA's A is (rank, in_features), B is (out_features, rank).

    A base whose files name its layers in another way than its code, or which is quantised, cannot be compared.
    """
    known = {module: base[f"{module}.weight"] for module in modules if f"{module}.weight" in base}
    if not known:
        return
    missing = next((module for module in modules if module not in known), None)
    if missing is not None:
        raise BadArtifact(f"{version} was trained on another base: this base has no layer {missing}")
    for module, shape in known.items():
        features = (modules[module]["B"][0], modules[module]["A"][1])
        if shape not in (features, features[::-1]):
            raise BadArtifact(
                f"{version} was trained on another base: its {module} has {features[0]} x {features[1]} features, "
                f"this base has {' x '.join(map(str, shape))}"
            )
