"""What the arms share that train with a library's own trainer, each in a process of its own.

A task is a JSON file with the fields `run` (folder of the trainer's run), `base` (folder), `replay` (cache of the
base's answers), `threads`, `seed` and `recipe` (fields of the arm's recipe). The result is the folder of the adapter;
it appears when it is complete, with `figures.json`: rows, tokens per second and seconds.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from services.trainer.core.chat import Messages
from services.trainer.dataset.filters import Row

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from shared.chat_format import ChatFormat

FIGURES = "figures.json"
AnsweredConversation = tuple[Messages, str]


def usable_answers(rows: Sequence[Row]) -> list[AnsweredConversation]:
    """Return (conversation, answer) of the rows with a good answer: corrections, liked answers, chosen answers."""
    usable: list[AnsweredConversation] = [
        (row.messages, row.answer) for row in rows if row.objective == "sft" or row.label
    ]
    return usable + [(row.messages, row.answer) for row in rows if row.objective == "dpo"]


@dataclass(frozen=True, slots=True)
class PeerTask:
    """A run's rows, base and replay, and the arm's recipe."""

    run: Path
    base: Path
    replay: Path
    threads: int
    seed: int
    recipe: dict[str, Any]

    @classmethod
    def read(cls, file: Path) -> PeerTask:
        """Read a task."""
        task = json.loads(file.read_text(encoding="utf-8"))
        return cls(
            Path(task["run"]),
            Path(task["base"]),
            Path(task["replay"]),
            task["threads"],
            task["seed"],
            task["recipe"],
        )

    def rows(self) -> list[Row]:
        """Return the rows that the trainer's checks left usable."""
        from services.trainer.dataset import snapshot_files  # noqa: PLC0415 - see `model`

        return [grouped.row for grouped in snapshot_files.read_rows(self.run)]

    def chat(self) -> ChatFormat:
        """Return the base's tokenizer and template."""
        from services.trainer.base.tokenization import load_chat  # noqa: PLC0415

        return load_chat(self.base)

    def model(self) -> PreTrainedModel:
        """Load the base in the data type of the run."""
        from services.trainer.base.dtype import of_run  # noqa: PLC0415 - imports take seconds; only the arm needs them
        from services.trainer.base.model import load_base  # noqa: PLC0415

        return load_base(self.base, self.threads, of_run(self.run))

    def replay_answers(self, chat: ChatFormat) -> list[AnsweredConversation]:
        """Return the base's answers to the replay prompts of the run's recipe."""
        from services.trainer.base.base_answers import REPLAY_PROMPTS, shipped_prompts  # noqa: PLC0415
        from services.trainer.progress import ignore_progress  # noqa: PLC0415
        from services.trainer.run import eval_batch  # noqa: PLC0415
        from services.trainer.run.base_answers import answer_cache  # noqa: PLC0415
        from services.trainer.run.folder import CONFIG  # noqa: PLC0415
        from services.trainer.run.run_table import RunConfig  # noqa: PLC0415

        config = RunConfig.from_json((self.run / CONFIG).read_text(encoding="utf-8"))
        cache = answer_cache(self.run, config, self.replay, eval_batch.limits(self.run).generate)
        prompts = shipped_prompts(REPLAY_PROMPTS, config.recipe.replay_prompts)
        answers = cache.answers(prompts, chat, ignore_progress)
        return [(answer.messages, answer.answer) for answer in answers if answer.answer]


class PeerRecipe(Protocol):
    """What every arm's recipe has."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""

    @property
    def epochs(self) -> float:
        """Passes over the rows."""

    @property
    def batch_size(self) -> int:
        """Rows per step."""


def common_arguments(folder: str, recipe: PeerRecipe, seed: int) -> dict[str, Any]:
    """Return the arguments that all of TRL's configurations get.

    Gradient checkpointing and autocast cost time on a CPU and change little.
    """
    import torch  # noqa: PLC0415

    return {
        "output_dir": folder,
        "num_train_epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
    }


def lora(rank: int) -> LoraConfig:
    """Return PEFT's configuration of an adapter of all linear layers. Alpha is twice the rank."""
    from peft import LoraConfig  # noqa: PLC0415

    return LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def train_and_save(
    trainer: Any, output: Path, chat: ChatFormat, rows: Sequence[AnsweredConversation], epochs: float
) -> None:
    """Train, and write the adapter and its figures to `output`. Tokens are those of the rows, in all epochs."""
    from services.trainer.base.tokenization import token_count  # noqa: PLC0415

    staging = output.with_name(f".{output.name}.incoming")
    shutil.rmtree(staging, ignore_errors=True)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    tokens = epochs * sum(token_count(chat, messages, answer) for messages, answer in rows)
    trainer.model.save_pretrained(str(staging))
    figures = {"rows": len(rows), "tokens_per_s": round(tokens / seconds, 1), "seconds": round(seconds, 1)}
    (staging / FIGURES).write_text(json.dumps(figures), encoding="utf-8")
    staging.rename(output)
