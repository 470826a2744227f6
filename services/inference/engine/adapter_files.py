"""Names of an adapter's files and of the weights in them, as peft writes them."""

from __future__ import annotations

from typing import Final

from shared.errors import BadArtifact

WEIGHTS_FILE: Final = "adapter_model.safetensors"
CONFIG_FILE: Final = "adapter_config.json"
WEIGHT_PREFIX: Final = "base_model.model."
"""peft's prefix of the name of every weight in an adapter file."""


def layer_and_side(version: str, weight: str) -> tuple[str, str]:
    """Return the layer of the base that a weight adapts, and whether it is LoRA's `A` or `B`.

    Raises:
        BadArtifact: if the weight is of another kind.

    """
    layer, _, rest = weight.removeprefix(WEIGHT_PREFIX).partition(".lora_")
    side = rest.partition(".")[0]
    if side not in {"A", "B"} or not weight.startswith(WEIGHT_PREFIX):
        raise BadArtifact(f"{version}: {weight} is not a LoRA weight of a linear layer")
    return layer, side
