"""The plain arm, in a process of its own: `python -m benchmarks.worlds.plain_lora TASK OUTPUT`.

A LoRA loop as most people write it: TRL's SFT trainer with PEFT on the rows that the trainer's checks left usable, with
a quarter of the rows replay of the base's own answers. Liked answers train like corrections and disliked ones are left
out. It has none of the product's parts: no losses for thumbs, no order of batches, no treatment of truncated answers.
Rank, learning rate, epochs and share of replay are in `PlainRecipe`; the rest is TRL's default, except for gradient
checkpointing and autocast, which cost time on a CPU and change little.

TASK and OUTPUT: see `peer_task.py`.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.worlds.peer_task import (
    AnsweredConversation,
    PeerTask,
    common_arguments,
    lora,
    train_and_save,
    usable_answers,
)
from services.trainer.dataset.filters import Row
from services.trainer.worker.child import die_with_parent


@dataclass(frozen=True, slots=True)
class PlainRecipe:
    """Hyperparameters of the plain arm.

    Attributes:
        rank: LoRA rank. Alpha is twice the rank.
        learning_rate: Peak learning rate.
        epochs: Passes over the rows.
        batch_size: Rows per step.
        replay_share: Share of the rows that is replay.
    """

    rank: int = 16
    learning_rate: float = 1e-3
    epochs: float = 4.0
    batch_size: int = 8
    replay_share: float = 0.25


def plain_rows(
    rows: Sequence[Row], replay: Sequence[AnsweredConversation], share: float, seed: int
) -> list[AnsweredConversation]:
    """Return (conversation, answer) of usable rows and of replay, which is repeated if there is too little.

    Args:
        rows: Rows that the trainer's checks left usable.
        replay: The base's answers to general prompts.
        share: Share of replay among the returned rows.
        seed: Decides which replay is taken.
    """
    usable = usable_answers(rows)
    shuffled = random.Random(seed).sample(list(replay), len(replay))
    count = round(len(usable) * share / (1 - share)) if shuffled else 0
    return [*usable, *(shuffled[i % len(shuffled)] for i in range(count))]


def main(task_file: Path, output: Path) -> None:
    """Train and save the adapter."""
    die_with_parent()
    from datasets import Dataset  # noqa: PLC0415 - the module is also imported for `PlainRecipe`
    from trl.trainer.sft_config import SFTConfig  # noqa: PLC0415
    from trl.trainer.sft_trainer import SFTTrainer  # noqa: PLC0415

    from services.trainer.dataset.objectives import sft_row  # noqa: PLC0415

    task = PeerTask.read(task_file)
    recipe = PlainRecipe(**task.recipe)
    chat = task.chat()
    rows = plain_rows(task.rows(), task.replay_answers(chat), recipe.replay_share, task.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=task.model(),
            args=SFTConfig(
                **common_arguments(folder, recipe, task.seed),
            ),
            train_dataset=Dataset.from_list([dict(sft_row(messages, answer)) for messages, answer in rows]),
            processing_class=chat.tokenizer,
            peft_config=lora(recipe.rank),
        )
        train_and_save(trainer, output, chat, rows, recipe.epochs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
