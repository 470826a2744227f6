"""Measures this machine's speed: `python -m benchmarks.experiment.machine_speed BASE THREADS OUTPUT`.

OUTPUT is a JSON file with the fields of `eta.Speed`: seconds per SFT step and per KTO step, and generated tokens per
second. It runs in a process of its own, with the environment of a run.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers import logging as transformers_logging

from examples.world import load_world
from services.trainer.base.dtype import fastest
from services.trainer.base.model import generate_answers, load_base
from services.trainer.base.shape import base_shape
from services.trainer.base.tokenization import load_chat
from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import ROWS_PER_STEP
from services.trainer.files import write_whole
from services.trainer.training.fine_tune import fine_tune
from services.trainer.training.prepare import resolve_recipe
from services.trainer.training.rows import sft_row
from services.trainer.worker.child import die_with_parent

STEPS = 3
"""Timed steps of each objective, without the first step."""
ANSWERS, ANSWER_TOKENS = 32, 16


class StepTimes(TrainerCallback):
    """Records the time after each training step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the time."""
        self.times.append(time.perf_counter())


def main(base_folder: Path, threads: int, output: Path) -> None:
    """Measure and write the speed."""
    die_with_parent()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    recipe, chat = Recipe(threads=threads), load_chat(base_folder)
    model = load_base(base_folder, threads, fastest(base_folder))
    texts = [((("user", wording),), fact.answer) for fact in load_world().facts for wording in fact.wordings]
    started = time.perf_counter()
    generate_answers(model, chat, [messages for messages, _ in texts[:ANSWERS]], ANSWER_TOKENS)
    tokens_per_s = ANSWERS * ANSWER_TOKENS / (time.perf_counter() - started)
    count = (STEPS + 1) * ROWS_PER_STEP
    rows = [sft_row(chat, "sft", messages, answer) for messages, answer in texts[:count]]
    # Judged answers are about twice as long as corrections.
    judged = [
        replace(
            sft_row(chat, "kto", messages, f"{answer} {answer}"),
            objective="kto",
            liked=i % 2 == 0,
        )
        for i, (messages, answer) in enumerate(texts[:count])
    ]
    steps_of_rows = [
        tuple(each[start : start + ROWS_PER_STEP])
        for each in (rows, judged)
        for start in range(0, count, ROWS_PER_STEP)
    ]
    step_times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            model,
            steps_of_rows,
            resolve_recipe(recipe, base_shape(base_folder), model.dtype.itemsize, [*rows, *judged], []),
            Path(folder),
            callback=step_times,
            stop=threading.Event(),
        )
    steps = [later - earlier for earlier, later in zip(step_times.times, step_times.times[1:], strict=False)]
    speed = {
        "sft_step_s": statistics.median(steps[:STEPS]),
        "kto_step_s": statistics.median(steps[-STEPS:]),
        "tokens_per_s": tokens_per_s,
    }
    write_whole(output, json.dumps(speed).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
