"""The world of style: a speaking assistant says the first sentence of an answer; users press thumbs. Pure."""

from __future__ import annotations

import json
import random
import re
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from benchmarks.experiment.arms import Arm, Sizes
from benchmarks.experiment.make_batches import Said

Sampled = Mapping[str, Sequence[str]]
"""Answers of chance, by question, as far as the bound on their tokens let them."""
SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


@cache
def prompts() -> dict[str, list[str]]:
    """`asked` by users, `held_out` to measure alone."""
    shipped = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))
    return {name: list(shipped[name]) for name in ("asked", "held_out")}


def spoken(answer: str) -> str:
    """What users hear: the first sentence, or all where none ends."""
    found = SENTENCE.match(answer)
    return found.group() if found else answer


def bound(sizes: Sizes, sampled: Sampled) -> int:
    """Words of an answer that is short and direct: no more than half of the base's own have, as users hear them. So
    there are about as many liked as disliked ones, whatever the base."""
    return round(statistics.median(len(answer.split()) for _, answer in seen(sizes, sampled)))


def is_liked(answer: str, most: int) -> bool:
    """Short and direct."""
    return 0 < len(answer.split()) <= most


def seen(sizes: Sizes, sampled: Sampled) -> list[tuple[str, str]]:
    """(question, answer) that users hear and judge: each distinct answer once."""
    return [
        (question, answer)
        for question in prompts()["asked"][: sizes.questions]
        for answer in dict.fromkeys(map(spoken, sampled[question]))
        if answer
    ]


def said(arm: Arm, sizes: Sizes, sampled: Sampled) -> list[Said]:
    """One thumb on each answer. `sampled`: the base's. The control's thumbs are as many up and as many down, on answers
    of chance."""
    dice, most = random.Random(f"thumbs {arm.seed}"), bound(sizes, sampled)
    shown = seen(sizes, sampled)
    dice.shuffle(shown)
    liked = [is_liked(answer, most) for _, answer in shown]
    if arm.name == "random":
        dice.shuffle(liked)
    return [
        Said(
            f"user-{place % sizes.users + 1:02}",
            question,
            answer,
            "thumbs",
            "up" if liked[place] else "down",
            stopped=True,
        )
        for place, (question, answer) in enumerate(shown)
    ]


def held_out(sizes: Sizes) -> list[str]:
    return prompts()["held_out"][: sizes.held_questions]


def judged(sizes: Sizes, sampled: Sampled, most: int) -> dict[str, list[bool]]:
    """By held-out question: of each answer whether it is in the liked style."""
    return {
        question: [is_liked(spoken(answer), most) for answer in sampled[question]]
        for question in held_out(sizes)
    }
