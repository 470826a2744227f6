"""Train a run's adapter on the pinned base. Training can be interrupted and resumed at any step.

`prepare` makes the job from the run's folder, and `train` executes it: in this process, or as rank 0 of several, whose
other processes call `follow`.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from services.trainer.base.device import device_kind
from services.trainer.base.model import load_base
from services.trainer.run import micro_batch
from services.trainer.run.context import RunContext
from services.trainer.run.folder import ADAPTER, CHECKPOINTS
from services.trainer.training.adapter_files import save_adapter
from services.trainer.training.checkpoints import RunCallback
from services.trainer.training.fine_tune import fine_tune
from services.trainer.training.job import TrainingJob
from services.trainer.training.prepare import prepare, record_environment
from services.trainer.training.process_group import ALONE, ProcessGroup
from services.trainer.training.sharding import shard
from shared.adapters.base_model import find_base
from shared.errors import Misconfigured

if TYPE_CHECKING:
    from services.trainer.base.model import Model


def train(context: RunContext, group: ProcessGroup = ALONE) -> None:
    """Train on the run's snapshot and write the adapter. Raises `RunFailed` or `RunStopped`."""
    folder = context.folder
    job = prepare(context)
    if group.processes > 1:
        group.share(job.to_json())
    recipe = job.recipe
    callback = RunCallback(
        context.progress,
        context.stop,
        folder,
        lambda step: [row.name for row in job.steps[step - 1]],
        micro_batch.reduction_note(folder),
        checkpoint_minutes=recipe.checkpoint_minutes,
        validation_steps=recipe.validation_steps if job.validation else 0,
        early_stopping=recipe.early_stopping,
        group=group,
    )

    def record_measured(tokens: int) -> None:
        micro_batch.record_measured(folder, tokens)
        record_environment(context)

    model = execute(job, folder / CHECKPOINTS, callback, context.stop, group, record_measured)
    save_adapter(model, folder / ADAPTER, context.config.base_name)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def follow(group: ProcessGroup, base_model: str, stop: threading.Event) -> None:
    """Train as a process other than rank 0. `base_model` names the base on this machine.

    Raises:
        Misconfigured: The base on this machine is not that of rank 0.
        RunFailed: As for rank 0, which writes the reason.
        RunStopped: As for rank 0.

    """
    job = TrainingJob.from_json(group.share(b""))
    if group.node != 0:
        base = find_base(base_model)
        if base.digest != job.base_digest:
            raise Misconfigured(
                f"LOOPWRIGHT_BASE_MODEL={base.name} has the digest {base.digest[:16]} here, and the run trains a base "
                f"with {job.base_digest[:16]}: give all machines the same"
            )
        job = job.on(str(base.path))
    recipe = job.recipe
    callback = RunCallback(
        None,
        stop,
        checkpoint_minutes=recipe.checkpoint_minutes,
        validation_steps=recipe.validation_steps if job.validation else 0,
        early_stopping=recipe.early_stopping,
        group=group,
    )
    with tempfile.TemporaryDirectory(prefix="loopwright-rank-") as scratch:
        execute(job, Path(scratch), callback, stop, group)


def execute(
    job: TrainingJob,
    checkpoints: Path,
    callback: RunCallback,
    stop: threading.Event,
    group: ProcessGroup,
    measured: Callable[[int], None] = lambda _: None,
) -> Model:
    """Load the base and train. Returns the model. The arguments are those of `fine_tune`."""
    local_processes = group.processes // group.nodes
    base = load_base(
        Path(job.base),
        max(1, job.threads // local_processes),
        job.dtype,
        job.recipe.quantization,
        "cpu" if job.recipe.sharded else device_kind(),
    )
    if job.recipe.sharded:
        shard(base)
    return fine_tune(
        base,
        job.steps,
        job.recipe,
        checkpoints,
        callback=callback,
        stop=stop,
        validation=job.validation,
        group=group,
        measured=measured,
    )
