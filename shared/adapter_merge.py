"""Versions as merged copies of the base: the adapter's weights are added to the base's, in float32.

A merged version computes as fast as the base. It shares with the base every weight that the adapter does not change.
Serving and gate use the same function, so a version is gated with the numbers that it is served with: where weights are
bfloat16, adding an adapter to them rounds, which computing it next to them does not.

Imports neither torch nor peft: the caller passes models.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any, TypeVar

ModelT = TypeVar("ModelT")


def copy_sharing_weights(model: ModelT) -> ModelT:
    """Return a copy of a torch model whose parameters and buffers are those of the model, not copies of them."""
    torch_model: Any = model
    shared = {id(tensor): tensor for tensor in chain(torch_model.parameters(), torch_model.buffers())}
    return copy.deepcopy(model, shared)


def merge_adapter(model: Any, adapter: str) -> Iterator[None]:
    """Merge an adapter into its layers, one with each step of the iterator.

    The sum of a layer's weight and the adapter is computed in float32 and rounded once, to the weight's own type. The
    tensors that the layers had before are not changed, so other models may share them.

    Args:
        model: A model with the adapter in place, such as peft's `PeftModel`.
        adapter: The adapter's name.

    Raises:
        ValueError: if a merged weight is not finite.

    """
    for layer in list(model.modules()):
        if not hasattr(layer, "get_delta_weight"):
            continue
        base = layer.get_base_layer()
        types = {name: tensor.dtype for name, tensor in base.named_parameters(recurse=False)}
        _convert(base, dict.fromkeys(types, "float32"))
        layer.merge(safe_merge=True, adapter_names=[adapter])
        _convert(base, types)
        yield


def _convert(layer: Any, types: dict[str, Any]) -> None:
    """Replace parameters of a layer by new ones of these types. The tensors may be the same, the parameters are not."""
    for name, dtype in types.items():
        old = getattr(layer, name)
        tensor = old.detach().float() if dtype == "float32" else old.detach().to(dtype)
        setattr(layer, name, type(old)(tensor, requires_grad=False))
