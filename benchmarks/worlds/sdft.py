"""The arm of self-distillation, in a process of its own: `python -m benchmarks.worlds.sdft TASK OUTPUT`.

SDFT as TRL implements it: the model answers a question itself, and learns the token distributions that the base has for
that answer when its prompt shows the user's correction. There is no replay, because the base's own distributions are
what is learned. With `generate_from_teacher` the answers that are learned come from the base with the correction in its
prompt. Rows are those of the plain arm. TASK and OUTPUT: see `peer_task.py`.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.worlds.peer_task import PeerTask, common_arguments, lora, train_and_save, usable_answers
from services.trainer.worker.child import die_with_parent

TEACHER_PROMPT = "{prompt}\n\nThe correct answer is: {privileged_context}\nGive the correct answer."


@dataclass(frozen=True, slots=True)
class SdftRecipe:
    """Hyperparameters of the arm.

    Attributes:
        rank: LoRA rank. Alpha is twice the rank.
        learning_rate: Peak learning rate.
        epochs: Passes over the rows.
        batch_size: Rows per step, each with one answer.
        answer_tokens: Longest answer, in tokens.
        generate_from_teacher: Whether the base with the correction gives the answers, not the model itself.
    """

    rank: int = 16
    learning_rate: float = 1e-3
    epochs: float = 4.0
    batch_size: int = 8
    answer_tokens: int = 40
    generate_from_teacher: bool = False


def main(task_file: Path, output: Path) -> None:
    """Train and save the adapter."""
    die_with_parent()
    from datasets import Dataset  # noqa: PLC0415 - the module is also imported for `SdftRecipe`
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer  # noqa: PLC0415

    task = PeerTask.read(task_file)
    recipe = SdftRecipe(**task.recipe)
    chat = task.chat()
    rows = usable_answers(task.rows())
    examples = [
        {
            "prompt": [{"role": role, "content": text} for role, text in messages],
            "privileged_context": answer,
        }
        for messages, answer in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SDFTTrainer(
            model=task.model(),
            args=SDFTConfig(
                **common_arguments(folder, recipe, task.seed),
                num_generations=1,
                max_completion_length=recipe.answer_tokens,
                teacher_prompt_template=TEACHER_PROMPT,
                generate_from_teacher=recipe.generate_from_teacher,
            ),
            train_dataset=Dataset.from_list(examples),
            processing_class=chat.tokenizer,
            peft_config=lora(recipe.rank),
        )
        train_and_save(trainer, output, chat, rows, recipe.epochs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
