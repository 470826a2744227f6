"""Asks candidate and stable the same, greedily and in batches, and hands what they said to `decide`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.trainer.gate.decide import Measured, decide
from services.trainer.gate.items import Counts, Item
from services.trainer.gate.scorers import score, states
from services.trainer.model import answers, losses, with_adapter
from services.trainer.objectives import Messages
from services.trainer.replay import Answered, Prompt, spread
from services.trainer.store import write_whole
from services.trainer.tokens import Told, first_tokens
from shared.versions import GateReport

LIKELIHOODS = 80
"""Of so many of the base's own answers it is measured how likely a version finds them."""


GENERAL_TOKENS = 24
"""What a general question is answered within, whoever answers it: the keys are short facts."""


@dataclass(frozen=True, slots=True)
class Voice:
    """One version's answers to the items and to the general prompts, and how likely it finds the base's own."""

    items: list[str]
    general: list[str]
    nll: list[float]


def listen(
    base: Any,
    tokenizer: Any,
    adapter: Path | None,
    conversations: Sequence[Messages],
    own: Sequence[Answered],
    keyed: Sequence[int],
    new_tokens: int,
    told: Callable[[str], Told],
) -> Voice:
    """`own`: the base's answers to all general prompts; it is not asked again where it is the version that speaks.
    `keyed`: those of which it is known what is right, the only ones asked."""
    with with_adapter(base, adapter) as model:
        said = answers(model, tokenizer, conversations, new_tokens, told("answers"))
        if adapter is None:
            general = [first_tokens(tokenizer, own[i].answer, GENERAL_TOKENS) for i in keyed]
        else:
            asked = [own[i].messages for i in keyed]
            general = answers(model, tokenizer, asked, GENERAL_TOKENS, told("general"))
        weighed = [(one.messages, one.answer) for one in spread(own, LIKELIHOODS) if one.answer]
        likely = losses(model, tokenizer, weighed, told("likelihood"))
    return Voice(said, general, likely)


def measured(items: Sequence[Item], prompts: Sequence[Prompt], candidate: Voice, stable: Voice) -> Measured:
    """The two voices side by side."""
    scores: dict[Counts, list[tuple[float, float]]] = {"wins": [], "seen": [], "unseen": []}
    for item, new, old in zip(items, candidate.items, stable.items, strict=True):
        scores[item.counts].append(tuple(score(said, item.row.answer, item.keys) for said in (new, old)))  # type: ignore[arg-type]
    known = [prompt for prompt in prompts if prompt.answer_key]
    return Measured(
        wins=scores["wins"],
        seen=scores["seen"],
        unseen=scores["unseen"],
        accuracy=[
            (states(new, prompt.answer_key), states(old, prompt.answer_key))
            for prompt, new, old in zip(known, candidate.general, stable.general, strict=True)
        ],
        nll=list(zip(candidate.nll, stable.nll, strict=True)),
    )


def gate(
    items: Sequence[Item],
    prompts: Sequence[Prompt],
    hear: Callable[[str], Voice],
    *,
    gated_against: str,
    least_items: int,
    answers_file: Path,
) -> GateReport:
    """`hear("candidate" | "stable")` gives their voices. What was said lies in `answers_file`, apart from the report:
    it is users' text."""
    began = time.monotonic()
    candidate, stable = hear("candidate"), hear("stable")
    rows = [
        {
            "identity": item.row.identity,
            "counts": item.counts,
            "question": item.row.question,
            "correction": item.row.answer,
            "keys": item.keys,
            "candidate": new,
            "stable": old,
        }
        for item, new, old in zip(items, candidate.items, stable.items, strict=True)
    ]
    write_whole(answers_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    found = measured(items, prompts, candidate, stable)
    return decide(found, gated_against, least_items, time.monotonic() - began)
