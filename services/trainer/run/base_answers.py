"""The base's own answers under a run's settings, which all of the run's stages share."""

from __future__ import annotations

from pathlib import Path

from services.trainer.base import dtype
from services.trainer.base.base_answers import BaseAnswerCache
from services.trainer.base.device import run_machine
from services.trainer.base.memory import BatchLimit
from services.trainer.base.shape import base_shape
from services.trainer.core.hardware import Quantization
from services.trainer.core.resolved_recipe import base_quantization
from services.trainer.run import resolved
from services.trainer.run.run_table import RunConfig


def answer_cache(
    run: Path,
    config: RunConfig,
    cache: Path,
    limit: BatchLimit,
    *,
    processes: int = 1,
) -> BaseAnswerCache:
    """Return the cache of the base's answers in the data type and precision of a run.

    Args:
        run: Folder of the run.
        config: Its configuration.
        cache: Folder of the cache, which runs share.
        limit: How many prompts are answered at once.
        processes: Processes that train the run.

    """
    return BaseAnswerCache(
        Path(config.base),
        config.base_digest,
        config.recipe,
        cache,
        dtype.of_run(run),
        limit,
        config.chat_template_kwargs,
        quantization_of_run(run, config, processes),
    )


def quantization_of_run(run: Path, config: RunConfig, processes: int) -> Quantization:
    """Return how a run loads the weights of the base, to train and to evaluate.

    What does not fit a GPU to be trained does not fit it to answer either.
    """
    known = resolved.read(run)
    if known is not None:
        return known.quantization
    machine = run_machine(dtype.bytes_per_weight(run), processes)
    return base_quantization(config.recipe, base_shape(Path(config.base)), machine)
