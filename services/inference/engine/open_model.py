"""Load a base model for the transformers engine: its weights, its versions and the batch. Imports torch."""

from __future__ import annotations

from pathlib import Path

import structlog

from services.inference.engine.batch_limits import choose_limits
from services.inference.engine.chat_tokenizer import ChatTokenizer
from services.inference.engine.continuous_batch import ContinuousBatch, cache_layout
from services.inference.engine.loaded_model import LoadedModel
from services.inference.engine.memory import free_bytes
from services.inference.engine.version_models import VersionModels

MIB = 1 << 20
log = structlog.get_logger(__name__)


def open_model(
    folder: Path,
    tokenizer: ChatTokenizer,
    *,
    base: str,
    device: str,
    dtype: str,
    threads: int = 1,
    max_batch: int = 32,
    max_batch_tokens: int = 512,
    kv_cache_mb: int | None = None,
) -> LoadedModel:
    """Load the base model and prepare a batch for it. Call it in the thread that computes.

    Args:
        folder: Files of the base model.
        tokenizer: Its tokenizer.
        base: Version name of the base.
        device: `auto`, `cpu` or `cuda`.
        dtype: Name of the torch type to compute in, or `auto` (`data_type.py`).
        threads: Threads of torch.
        max_batch: Limit of the rows of one version.
        max_batch_tokens: Limit of the tokens of one forward pass.
        kv_cache_mb: Size of the key and value cache, in MiB; None for a share of the free memory.

    Raises:
        Misconfigured: if the model cannot be loaded or served, or memory does not suffice.

    """
    models = VersionModels(folder, base, device=device, dtype=dtype, threads=threads)
    groups, block_bytes = cache_layout(models.base)
    limits = choose_limits(
        rows=max_batch,
        step_tokens=max_batch_tokens,
        max_context=tokenizer.max_context,
        block_bytes=block_bytes,
        groups=groups,
        free_bytes=free_bytes(models.device),
        cache_bytes=None if kv_cache_mb is None else kv_cache_mb * MIB,
    )
    log.info(
        "kv_cache",
        mb=limits.blocks * block_bytes // MIB,
        longest_request_tokens=limits.max_length,
        rows=max_batch,
    )
    batch = ContinuousBatch(
        models.base, models.model_of, tokenizer.eos_token_ids | models.eos_token_ids, limits
    )
    return LoadedModel(models, batch)
