"""The world of style: users press thumbs on the base's own sampled answers. Pure."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from benchmarks.experiment.plan import Arm, Sizes
from benchmarks.experiment.records import Said

Sampled = Mapping[str, Sequence[str]]
"""Answers of chance, by question."""


@cache
def prompts() -> dict[str, list[str]]:
    """`asked` by users, `held_out` to measure alone."""
    shipped = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))
    return {name: list(shipped[name]) for name in ("asked", "held_out")}


def bound(sizes: Sizes, sampled: Sampled) -> int:
    """Words of an answer that is short and direct: no more than half of the base's own answers have. So there are about
    as many liked as disliked ones, whatever the base."""
    return round(statistics.median(len(answer.split()) for _, answer in seen(sizes, sampled)))


def is_liked(answer: str, most: int) -> bool:
    """Short and direct."""
    return 0 < len(answer.split()) <= most


def seen(sizes: Sizes, sampled: Sampled) -> list[tuple[str, str]]:
    """(question, answer) that users see and judge: each distinct answer once."""
    return [
        (question, answer)
        for question in prompts()["asked"][: sizes.questions]
        for answer in dict.fromkeys(sampled[question])
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
            f"user-{place % sizes.users + 1:02}", question, answer, "thumbs", "up" if liked[place] else "down"
        )
        for place, (question, answer) in enumerate(shown)
    ]


def held_out(sizes: Sizes) -> list[str]:
    return prompts()["held_out"][: sizes.held_questions]


def judged(sizes: Sizes, sampled: Sampled, most: int) -> dict[str, list[bool]]:
    """By held-out question: of each answer whether it is in the liked style."""
    return {
        question: [is_liked(answer, most) for answer in sampled[question]] for question in held_out(sizes)
    }
