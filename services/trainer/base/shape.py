"""Dimensions of a base model, read from its files. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.trainer.base.dtype import weight_bytes
from services.trainer.core.resolved_recipe import BaseShape


def base_shape(base: Path) -> BaseShape:
    """Return the dimensions of the model in a folder."""
    return shape_of(json.loads((base / "config.json").read_bytes()), weight_bytes(base) // 2)


def shape_of(config: Mapping[str, Any], weights: int) -> BaseShape:
    """Return the dimensions that a model's configuration gives.

    Args:
        config: Content of `config.json`. Text models inside of others have theirs in `text_config`.
        weights: Number of weights.

    """
    fields = {**config, **config.get("text_config", {})}

    def first(*names: str, default: int) -> int:
        return next((int(fields[name]) for name in names if fields.get(name)), default)

    hidden = first("hidden_size", "n_embd", "d_model", default=1024)
    return BaseShape(
        hidden=hidden,
        intermediate=first("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden),
        layers=first("num_hidden_layers", "n_layer", "num_layers", default=24),
        vocabulary=first("vocab_size", default=32_000),
        context=first("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", default=0),
        weights=weights,
    )
