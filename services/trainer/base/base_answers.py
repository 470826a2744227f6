"""What the base itself answers to the shipped prompts. Made once per base, before the first run or in it:

    python -m services.trainer.base.base_answers

makes them for LOOPWRIGHT_BASE_MODEL and skips what is there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import logging as transformers_logging

from services.trainer.base import dtype
from services.trainer.base.dtype import Dtype
from services.trainer.base.replay import (
    EVAL_PROMPTS,
    REPLAY_PROMPTS,
    SAFETY_PROMPTS,
    BaseAnswer,
    Prompt,
    cached_answers,
    shipped_prompts,
)
from services.trainer.base.tokenization import load_tokenizer
from services.trainer.core.recipe import Recipe
from services.trainer.progress import ProgressCallback
from services.trainer.settings import TrainerSettings
from shared.adapters.base_model import find_base
from shared.errors import Misconfigured
from shared.settings import load


@dataclass(frozen=True, slots=True)
class BaseAnswers:
    """One base's answers, kept in `folder` under its digest; those in each type apart, for what a version says in one
    is compared with what the base says in it."""

    base: Path
    digest: str
    recipe: Recipe
    folder: Path
    computed_in: Dtype = "bfloat16"

    def __call__(self, prompts: Sequence[Prompt], tokenizer: Any, told: ProgressCallback) -> list[BaseAnswer]:
        """In the order of `prompts`; the base is loaded only where answers are missing."""
        loaded: list[Any] = []
        made = 0

        def answering(missing: Sequence[Prompt], tokens: int) -> list[tuple[str, bool]]:
            nonlocal made
            from services.trainer.base.model import generate_with_endings, load_base  # noqa: PLC0415 - torch, only where it is needed

            if not loaded:
                loaded.append(load_base(self.base, self.recipe.threads, self.computed_in))
            before, made = made, made + len(missing)
            asked = [prompt.messages for prompt in missing]
            return generate_with_endings(
                loaded[0], tokenizer, asked, tokens, lambda done, _: told(before + done, len(prompts))
            )

        of_type = "" if self.computed_in == "bfloat16" else f"-{self.computed_in}"
        file = self.folder / f"{self.digest[:8]}{of_type}.jsonl"
        return cached_answers(file, prompts, self.recipe.replay_new_tokens, answering)


def main() -> int:
    """Every prompt that a run with these settings needs."""
    try:
        settings = load(TrainerSettings)
        base = find_base(settings.base_model)
    except Misconfigured as fault:
        print(fault, file=sys.stderr)
        return 1
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    recipe = settings.recipe()
    prompts = shipped_prompts(REPLAY_PROMPTS, recipe.replay_prompts)
    prompts += shipped_prompts(EVAL_PROMPTS, recipe.gate_eval_prompts) + shipped_prompts(
        SAFETY_PROMPTS, recipe.gate_safety_prompts
    )
    tokenizer = load_tokenizer(base.path)

    def told(done: int, of: int) -> None:
        print(f"{base.name}: {done} of {of} answers", flush=True)

    computed_in = dtype.resolve(recipe.dtype, base.path)
    found = BaseAnswers(base.path, base.digest, recipe, settings.replay_dir, computed_in)(
        prompts, tokenizer, told
    )
    print(f"{base.name}: {len(found)} answers are kept in {settings.replay_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
