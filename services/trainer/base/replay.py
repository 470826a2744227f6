"""What keeps general ability: the base's own answers to shipped prompts, trained along with the corrections.

They are made once per base, greedily and in batches, and kept under the base's digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from services.trainer.files import write_whole

DATA = Path(__file__).parents[1] / "data"
REPLAY_PROMPTS, EVAL_PROMPTS, SAFETY_PROMPTS = "general_replay.jsonl", "general_eval.jsonl", "safety.jsonl"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A shipped prompt; `answer_key`: phrases of which one makes an answer right; `refuse`: what is asked for is to be
    refused."""

    id: str
    prompt: str
    answer_key: tuple[str, ...] = ()
    refuse: bool = False

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        return (("user", self.prompt),)


@dataclass(frozen=True, slots=True)
class BaseAnswer:
    """What the base says to a prompt, within so many new tokens. `ended`: it needed no more of them."""

    id: str
    prompt: str
    answer: str
    new_tokens: int
    ended: bool

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        return (("user", self.prompt),)


Answering = Callable[[Sequence[Prompt], int], list[tuple[str, bool]]]
"""(prompts, new tokens) -> the base's greedy answers, and whether it ended each itself"""

ALL = 1_000_000
SAVED_EVERY = 128
"""Answers: an interruption loses fewer than these."""


def shipped_prompts(name: str, count: int = ALL) -> list[Prompt]:
    """`count` prompts of a file, spread evenly over it so that every kind is there."""
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    prompts = [
        Prompt(row["id"], row["prompt"], tuple(row.get("answer_key", ())), row.get("expect") == "refusal")
        for row in rows
    ]
    return spread(prompts, count)


def spread(rows: Sequence[T], count: int) -> list[T]:
    """`count` of them at even distances; all of them if there are no more."""
    return list(rows) if count >= len(rows) else [rows[i * len(rows) // count] for i in range(count)]


def cached_answers(
    file: Path, prompts: Sequence[Prompt], new_tokens: int, answering: Answering
) -> list[BaseAnswer]:
    """In the order of `prompts`: from `file` where it has them; the rest is made now, and kept as it comes."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    # Older releases did not keep whether an answer had ended: those are made anew.
    kept = [BaseAnswer(**row) for row in map(json.loads, lines) if "ended" in row]
    known = {(row.id, row.new_tokens): row for row in kept}
    missing = [
        p for p in prompts if (p.id, new_tokens) not in known or known[p.id, new_tokens].prompt != p.prompt
    ]
    for start in range(0, len(missing), SAVED_EVERY):
        part = missing[start : start + SAVED_EVERY]
        for prompt, (answer, ended) in zip(part, answering(part, new_tokens), strict=True):
            known[prompt.id, new_tokens] = BaseAnswer(prompt.id, prompt.prompt, answer, new_tokens, ended)
        ordered = [known[key] for key in sorted(known)]
        write_whole(file, "".join(json.dumps(asdict(row)) + "\n" for row in ordered).encode())
    return [known[prompt.id, new_tokens] for prompt in prompts]
