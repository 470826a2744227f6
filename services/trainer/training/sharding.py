"""A base whose layers are divided among the processes of a run: FSDP2, PyTorch's `fully_shard`.

Each process holds a part of every decoder layer, and has a whole layer only while it computes with it. Only frozen
weights are divided. What trains is small, so every process holds all of the adapter, and DDP averages its gradients.
Checkpoints and the trained adapter are therefore the same as without. Embeddings and head are not divided either:
losses are computed from the head's weights (`likelihoods.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from services.trainer.base.device import device_kind
from services.trainer.run.context import RunFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from services.trainer.base.model import Model

log = structlog.get_logger(__name__)


def shard(base: PreTrainedModel) -> None:
    """Divide the base, which is in main memory, among all processes, and move each part to its process's device.

    Call it in all processes, before an adapter is added. Raises `RunFailed` if the base's layers are not known.
    """
    layers = decoder_layers(base)
    if not layers:
        raise RunFailed(
            f"the layers of {type(base).__name__} are not known, so it cannot be divided among GPUs: set "
            "LOOPWRIGHT_TRAINER_SHARDING=off"
        )
    device = device_kind()
    mesh = init_device_mesh(device, (distributed.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # As the root it lets layers be fetched while the one before is computed.
    divided = {weight for layer in layers for weight in layer.parameters()}
    fully_shard(base, mesh=mesh, ignored_params={one for one in base.parameters() if one not in divided})
    whole: Any = base
    whole.to(device)
    log.info("base_divided", layers=len(layers), processes=mesh.size())


def decoder_layers(base: PreTrainedModel) -> list[nn.Module]:
    """Return the modules that transformers never divides, which are the decoder's layers."""
    names = set(base._no_split_modules or ())
    return [module for module in base.modules() if type(module).__name__ in names]


def leave_to_fsdp(model: Model) -> None:
    """Tell DDP to ignore all weights that do not train: those that are divided must not be made equal."""
    ignored: Any = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    model._ddp_params_and_buffers_to_ignore = ignored
