"""The rows that TRL's trainers take, by objective. docs/decisions/objectives.md has reasons.

`shared.feedback_kinds` says which kind of feedback has which objective:

- `sft`: loss on the tokens of the answer.
- `kto`: loss on a liked or disliked answer; SFT on the liked ones if a label is too rare (`KTO_LEAST`).
- `dpo`: DPO plus the negative log-likelihood of the chosen answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

from services.trainer.core.chat import Messages, as_chat
from services.trainer.core.recipe import KTO_LEAST
from shared.feedback_kinds import Objective

TRUNCATING_FINISH_REASONS: Final = frozenset({"length", "content_filter", "cancelled"})
"""Values of `finish_reason` of an answer that the model did not end itself."""

COMMENT_NOT_TRAINED: Final = (
    "comment: says what to change, not what to answer (comment_mode append or revise would train on it)"
)


class SftRow(TypedDict):
    """Conversational prompt and completion; only the completion has a loss."""

    prompt: list[dict[str, str]]
    completion: list[dict[str, str]]


class KtoRow(SftRow):
    """An answer and whether it was liked."""

    label: bool


class DpoRow(TypedDict):
    """Two answers to one conversation, of which the first was preferred."""

    prompt: list[dict[str, str]]
    chosen: list[dict[str, str]]
    rejected: list[dict[str, str]]


TrlRow = SftRow | KtoRow | DpoRow


def sft_row(messages: Messages, answer: str) -> SftRow:
    """Return an answer to train on."""
    return {"prompt": as_chat(messages), "completion": as_chat([("assistant", answer)])}


def kto_row(messages: Messages, answer: str, liked: bool) -> KtoRow:
    """Return a judged answer."""
    return {"prompt": as_chat(messages), "completion": as_chat([("assistant", answer)]), "label": liked}


def dpo_row(messages: Messages, chosen: str, rejected: str) -> DpoRow:
    """Return a preference."""
    return {
        "prompt": as_chat(messages),
        "chosen": as_chat([("assistant", chosen)]),
        "rejected": as_chat([("assistant", rejected)]),
    }


def objective_of(row: Mapping[str, Any]) -> Objective:
    """Return the objective of a TRL row."""
    return "dpo" if "chosen" in row else "kto" if "label" in row else "sft"


def append_comment(answer: str, comment: str) -> str:
    """Return what a comment trains with `comment_mode: append`: the answer, a space, the comment."""
    return answer + " " + comment


def enough_for_kto(liked: int, disliked: int, least: int = KTO_LEAST) -> bool:
    """Return whether the rarer label has at least `least` rows."""
    return min(liked, disliked) >= least


def kto_weights(liked: int, disliked: int) -> tuple[float, float]:
    """Return the weights of a liked and of a disliked answer, such that both labels weigh the same in total.

    Ethayarajh et al. 2024, equation 8, which allows one side to weigh between 1 and 4/3 times the other.
    """
    return max(1.0, disliked / max(1, liked)), max(1.0, liked / max(1, disliked))
