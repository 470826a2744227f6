"""How fast this machine is: `python -m benchmarks.experiment.machine_speed BASE THREADS OUT`, in a process of its own.

OUT: seconds a step of SFT and of KTO, tokens a second of greedy answers.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers import logging as transformers_logging

from examples.world import load_world
from services.trainer.base.dtype import fastest
from services.trainer.base.model import generate_answers, load_base
from services.trainer.base.tokenization import load_tokenizer
from services.trainer.core.recipe import Recipe
from services.trainer.dataset.objectives import kto_row, sft_row
from services.trainer.files import write_whole
from services.trainer.progress import Progress
from services.trainer.training.train import with_training_attention, fine_tune
from services.trainer.worker.launcher import PARENT_PID_VARIABLE
from shared.adapters.in_memory import InMemoryCache
from shared.adapters.parent_death import die_with

STEPS = 3
"""Of each kind, without the first."""
ASKED, TOKENS = 32, 16


class Stamps(TrainerCallback):
    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.at.append(time.perf_counter())


def main(base: Path, threads: int, out: Path) -> None:
    if PARENT_PID_VARIABLE in os.environ:
        die_with(int(os.environ[PARENT_PID_VARIABLE]))
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    recipe, tokenizer = Recipe(threads=threads), load_tokenizer(base)
    model = load_base(base, threads, fastest(base))
    said = [((("user", wording),), fact.answer) for fact in load_world().facts for wording in fact.wordings]
    began = time.perf_counter()
    generate_answers(model, tokenizer, [asked for asked, _ in said[:ASKED]], TOKENS)
    speed = ASKED * TOKENS / (time.perf_counter() - began)
    each = (STEPS + 1) * recipe.batch_size
    rows = [sft_row(*one) for one in said[:each]]
    # Judged answers are about twice as long as corrections.
    rows += [kto_row(asked, f"{answer} {answer}", i % 2 == 0) for i, (asked, answer) in enumerate(said[:each])]
    stamps = Stamps()
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            with_training_attention(model, recipe.max_tokens),
            tokenizer,
            rows,
            recipe,
            Path(folder),
            progress=Progress(InMemoryCache(), "probe", "probe"),
            stop=threading.Event(),
            watch=stamps,
        )
    steps = [later - earlier for earlier, later in zip(stamps.at, stamps.at[1:], strict=False)]
    found = {
        "sft_step_s": statistics.median(steps[:STEPS]),
        "kto_step_s": statistics.median(steps[-STEPS:]),
        "tokens_per_s": speed,
    }
    write_whole(out, json.dumps(found).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
