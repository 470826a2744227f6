"""What the stages of a run share: its folder and configuration, its tokenizer, and the way to tell how far it is."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from services.trainer.base import dtype
from services.trainer.base.base_answers import BaseSays
from services.trainer.base.replay import Answered, Prompt
from services.trainer.base.tokenization import load_tokenizer
from services.trainer.dataset import snapshot
from services.trainer.progress import Progress, ProgressCallback
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from shared.errors import LoopwrightError


class RunFailed(LoopwrightError):
    """Trying this run again cannot help; the message says why."""

    code = "run_failed"


class RunStopped(LoopwrightError):
    """The run was asked to stop; the next start goes on with it."""

    code = "stopped"


@dataclass
class RunContext:
    """What a run works with. The tokenizer is loaded at once, the base when it is needed."""

    folder: Path
    config: RunConfig
    settings: TrainerSettings
    progress: Progress
    stop: threading.Event

    def __post_init__(self) -> None:
        self.tokenizer = load_tokenizer(Path(self.config.base))

    def progress_callback(self, stage: str) -> ProgressCallback:
        """A callback that tells how far, and ends the run between two batches where that is asked."""
        count = self.progress.counting(stage)

        def tell(done: int, of: int) -> None:
            count(done, of)
            if self.stop.is_set():
                raise RunStopped(f"asked to stop during {stage}")

        return tell

    def folder_of(self, run_id: str) -> Path:
        return self.folder.parent / run_id

    def base_answers(self, prompts: list[Prompt]) -> list[Answered]:
        """The base's own answers, in the order of `prompts`, from the cache of its digest."""
        config = self.config
        computed_in = dtype.settled(self.folder)
        says = BaseSays(
            Path(config.base), config.base_digest, config.recipe, self.settings.replay_dir, computed_in
        )
        return says(prompts, self.tokenizer, self.progress_callback("replay"))


def trained_questions(folder: Path) -> list[str]:
    """What a run's snapshot asks; none where it was erased."""
    return [one.row.question for one in snapshot.read_rows(folder)] if snapshot.is_complete(folder) else []
