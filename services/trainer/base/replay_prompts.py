"""General prompts whose base answers are replayed in training: the shipped ones, and an operator's own.

A run keeps a copy of the operator's file as it was when training began, because a resumed run must train on the same
rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.trainer.base.base_answers import REPLAY_PROMPTS, Prompt, shipped_prompts, spread
from services.trainer.base.replay_prompt_file import read_replay_prompts
from services.trainer.files import write_whole
from shared.events import sha256

COPY: Final = "replay_prompts.jsonl"
"""Name of the copy in a run's folder."""


def prompts_of_run(folder: Path, file: Path | None) -> list[Prompt]:
    """Return the own prompts of a run; copy them to its folder when they are first used. Raises `Misconfigured`."""
    copy = folder / COPY
    if copy.exists():
        return _as_prompts(read_replay_prompts(copy) if copy.stat().st_size else [])
    own = read_replay_prompts(file) if file is not None else []
    lines = (json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in own)
    write_whole(copy, "".join(lines).encode())
    return _as_prompts(own)


def _as_prompts(texts: Sequence[str]) -> list[Prompt]:
    return [Prompt(f"own-{sha256(text.encode())[:16]}", text) for text in texts]


def choose_prompts(own: Sequence[Prompt], count: int) -> list[Prompt]:
    """Return `count` prompts, half of them own ones as far as there are enough of either; all if there are fewer."""
    shipped = shipped_prompts(REPLAY_PROMPTS)
    own_count = min(len(own), max(count // 2, count - len(shipped)))
    return [*spread(shipped, count - own_count), *spread(own, own_count)]
