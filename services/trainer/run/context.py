"""Context that the stages of a run share, and the errors that end a run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.trainer.base.base_answers import Asked, BaseAnswer, Prompt
from services.trainer.base.device import describe
from services.trainer.base.memory import EvalLimits
from services.trainer.base.shape import base_shape
from services.trainer.base.tokenization import load_chat
from services.trainer.core.eval_size import EvalSize, eval_size
from services.trainer.core.hardware import Quantization
from services.trainer.dataset import snapshot_files
from services.trainer.progress import Progress, ProgressCallback
from services.trainer.run import eval_batch
from services.trainer.run.base_answers import answer_cache, quantization_of_run
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from shared.chat_format import ChatFormat
from shared.errors import LoopwrightError
from shared.run_stage import RunStage


class RunFailed(LoopwrightError):
    """The run failed, and a retry would fail in the same way. The message says why."""

    code = "run_failed"


class RunStopped(LoopwrightError):
    """The run stopped because it was asked to. The next start resumes it."""

    code = "stopped"


@dataclass
class RunContext:
    """A run's folder, configuration and chat format, with its progress and its stop signal.

    Creating it loads the tokenizer of the base; stages load the base itself when they need it. Chat templates that
    write a date get that of the run's start.
    """

    folder: Path
    config: RunConfig
    settings: TrainerSettings
    progress: Progress
    stop: threading.Event
    chat: ChatFormat = field(init=False)
    eval_limits: EvalLimits = field(init=False)
    """How many rows are evaluated at once in this run."""

    def __post_init__(self) -> None:
        config = self.config
        self.eval_limits = eval_batch.limits(self.folder)
        self.chat = load_chat(Path(config.base), config.chat_template_kwargs, config.created_at.date())

    def progress_callback(self, stage: str) -> ProgressCallback:
        """Return a callback that reports progress of `stage`, and raises `RunStopped` once `stop` is set."""
        report = self.progress.callback(stage)

        def callback(done: int, total: int) -> None:
            report(done, total)
            if self.stop.is_set():
                raise RunStopped(f"stopped during {stage}")

        return callback

    @property
    def trainer_folder(self) -> Path:
        """Folder of the trainer's database, which contains the run's folder as `runs/<run_id>`."""
        return self.folder.parent.parent

    def folder_of(self, run_id: str) -> Path:
        """Return the folder of another run of this line."""
        return self.folder.parent / run_id

    def quantization(self) -> Quantization:
        """Return how this run loads the weights of the base, to train and to evaluate."""
        return quantization_of_run(self.folder, self.config, self.settings.world_size)

    def eval_size(self) -> EvalSize:
        """Return how many shipped questions the gate asks."""
        weights = base_shape(Path(self.config.base)).weights
        return eval_size(self.config.recipe, describe().kind, weights)

    def base_answers(self, prompts: Sequence[Prompt]) -> list[BaseAnswer]:
        """Return the base's own greedy answers of the length of replay data, in the order of `prompts`."""
        return self.base_answers_of([Asked(prompts, self.config.recipe.replay_new_tokens)])[0]

    def base_answers_of(self, asked: Sequence[Asked]) -> list[list[BaseAnswer]]:
        """Return the base's own answers to several lists of prompts.

        Generates those that the cache does not have.
        """
        cache = answer_cache(
            self.folder,
            self.config,
            self.settings.replay_dir,
            self.eval_limits.generate,
            processes=self.settings.world_size,
        )
        return cache.answers_of(asked, self.chat, self.progress_callback(RunStage.REPLAY))


def trained_questions(folder: Path) -> list[str]:
    """Return the questions that a run trained on, or none if an erasure removed its snapshot."""
    return [one.row.question for one in snapshot_files.trained_rows(folder)]
