"""The plain arm, in a process of its own: `python -m benchmarks.worlds.plain_lora TASK OUTPUT`.

A LoRA loop as most people write it: TRL's SFT trainer with PEFT on the rows that the trainer's checks left usable, with
a quarter of the rows replay of the base's own answers. Liked answers train like corrections and disliked ones are left
out. It has none of the product's parts: no losses for thumbs, no order of batches, no treatment of truncated answers.
Rank, learning rate, epochs and share of replay are in `PlainRecipe`; the rest is TRL's default, except for gradient
checkpointing and autocast, which cost time on a CPU and change little.

TASK is a JSON file with the fields `run` (folder of the trainer's run), `base` (folder), `replay` (cache of the base's
answers), `threads`, `seed` and the fields of `PlainRecipe`. OUTPUT is the folder of the adapter; it appears when it is
complete, with `figures.json`: rows, tokens per second and seconds.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.trainer.core.chat import Messages
from services.trainer.dataset.filters import Row
from services.trainer.worker.child import die_with_parent

FIGURES = "figures.json"


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
    rows: Sequence[Row], replay: Sequence[tuple[Messages, str]], share: float, seed: int
) -> list[tuple[Messages, str]]:
    """Return (conversation, answer) of usable rows and of replay, which is repeated if there is too little.

    Args:
        rows: Rows that the trainer's checks left usable.
        replay: The base's answers to general prompts.
        share: Share of replay among the returned rows.
        seed: Decides which replay is taken.
    """
    usable = [(row.messages, row.answer) for row in rows if row.objective == "sft" or row.label]
    usable += [(row.messages, row.answer) for row in rows if row.objective == "dpo"]
    shuffled = random.Random(seed).sample(list(replay), len(replay))
    count = round(len(usable) * share / (1 - share)) if shuffled else 0
    return [*usable, *(shuffled[i % len(shuffled)] for i in range(count))]


def main(task_file: Path, output: Path) -> None:
    """Train and save the adapter."""
    die_with_parent()
    import torch  # noqa: PLC0415 - the module is also imported for `PlainRecipe`
    from datasets import Dataset  # noqa: PLC0415
    from peft import LoraConfig  # noqa: PLC0415
    from trl.trainer.sft_config import SFTConfig  # noqa: PLC0415
    from trl.trainer.sft_trainer import SFTTrainer  # noqa: PLC0415

    from services.trainer.base.base_answers import (  # noqa: PLC0415
        REPLAY_PROMPTS,
        BaseAnswerCache,
        shipped_prompts,
    )
    from services.trainer.base.dtype import of_run  # noqa: PLC0415
    from services.trainer.base.model import load_base  # noqa: PLC0415
    from services.trainer.base.tokenization import load_chat, token_count  # noqa: PLC0415
    from services.trainer.dataset import snapshot_files  # noqa: PLC0415
    from services.trainer.dataset.objectives import sft_row  # noqa: PLC0415
    from services.trainer.progress import ignore_progress  # noqa: PLC0415
    from services.trainer.run.folder import CONFIG  # noqa: PLC0415
    from services.trainer.run.run_table import RunConfig  # noqa: PLC0415

    task = json.loads(task_file.read_text(encoding="utf-8"))
    recipe = PlainRecipe(**task["recipe"])
    base, run = Path(task["base"]), Path(task["run"])
    config = RunConfig.from_json((run / CONFIG).read_text(encoding="utf-8"))
    chat, dtype = load_chat(base), of_run(run)
    answers = BaseAnswerCache(base, config.base_digest, config.recipe, Path(task["replay"]), dtype).answers(
        shipped_prompts(REPLAY_PROMPTS, config.recipe.replay_prompts), chat, ignore_progress
    )
    rows = plain_rows(
        [grouped.row for grouped in snapshot_files.read_rows(run)],
        [(answer.messages, answer.answer) for answer in answers if answer.answer],
        recipe.replay_share,
        task["seed"],
    )
    staging = output.with_name(f".{output.name}.incoming")
    shutil.rmtree(staging, ignore_errors=True)
    started = time.monotonic()
    trainer = SFTTrainer(
        model=load_base(base, task["threads"], dtype),
        args=SFTConfig(
            output_dir=str(staging / "trainer"),
            num_train_epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            per_device_train_batch_size=recipe.batch_size,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=task["seed"],
        ),
        train_dataset=Dataset.from_list([dict(sft_row(messages, answer)) for messages, answer in rows]),
        processing_class=chat.tokenizer,
        peft_config=LoraConfig(
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    seconds = time.monotonic() - started
    tokens = recipe.epochs * sum(token_count(chat, messages, answer) for messages, answer in rows)
    trained: Any = trainer.model
    trained.save_pretrained(str(staging))
    figures = {"rows": len(rows), "tokens_per_s": round(tokens / seconds, 1), "seconds": round(seconds, 1)}
    (staging / FIGURES).write_text(json.dumps(figures), encoding="utf-8")
    shutil.rmtree(staging / "trainer", ignore_errors=True)
    staging.rename(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
