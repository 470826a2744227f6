"""Which loss each kind of feedback gets, and how its rows look to TRL. `docs/decisions/objectives.md` says why.

| feedback | objective |
| --- | --- |
| correction; comment, as `CommentMode` says | SFT on the answer's tokens |
| thumbs; ratings: 5 and 4 liked, 2 and 1 disliked | KTO; SFT on the liked where there is too little (`KTO_LEAST`) |
| preference | DPO with the chosen answer's negative log-likelihood beside it |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from services.trainer.core.chat import Messages, as_chat
from services.trainer.core.recipe import KTO_LEAST

Objective = Literal["sft", "kto", "dpo"]
OBJECTIVE_OF: Final[dict[str, Objective]] = {
    "correction": "sft",
    "comment": "sft",
    "thumbs": "kto",
    "rating": "kto",
    "preference": "dpo",
}
LIKED: Final[dict[str | int, bool]] = {"up": True, "down": False, 5: True, 4: True, 2: False, 1: False}

TRUNCATING_FINISH_REASONS: Final = frozenset({"length", "content_filter", "cancelled"})
"""Values of `finish_reason` of an answer that the model did not end itself."""

COMMENT_NOT_TRAINED: Final = (
    "comment: says what to change and not what to answer; held (comment_mode: append would train on it)"
)
NEUTRAL_RATING: Final = "rating: in the middle, so neither liked nor disliked"


def append_comment(response: str, comment: str) -> str:
    """What a comment trains under `comment_mode: append`: `target = response + " " + feedback`."""
    return response + " " + comment


def sft_row(messages: Messages, answer: str) -> dict[str, Any]:
    """One conversational prompt/completion pair as TRL takes it; only the completion carries loss."""
    return {"prompt": as_chat(messages), "completion": as_chat([("assistant", answer)])}


def kto_row(messages: Messages, answer: str, liked: bool) -> dict[str, Any]:
    """One answer that somebody judged."""
    return sft_row(messages, answer) | {"label": liked}


def dpo_row(messages: Messages, chosen: str, rejected: str) -> dict[str, Any]:
    """Two answers to one conversation, of which somebody preferred the first."""
    return {
        "prompt": as_chat(messages),
        "chosen": as_chat([("assistant", chosen)]),
        "rejected": as_chat([("assistant", rejected)]),
    }


def objective_of(row: Mapping[str, Any]) -> Objective:
    """What a row made by `sft`, `kto` or `dpo` trains by."""
    return "dpo" if "chosen" in row else "kto" if "label" in row else "sft"


def enough_for_kto(liked: int, disliked: int, least: int = KTO_LEAST) -> bool:
    """Whether there is enough of the rarer label."""
    return min(liked, disliked) >= least


def kto_weights(liked: int, disliked: int) -> tuple[float, float]:
    """The weights of a liked and of a disliked answer: the rarer side weighs as much more as it is rarer, so that both
    weigh the same together (Ethayarajh et al. 2024, equation 8: between 1 and 4/3 times the other)."""
    return max(1.0, disliked / max(1, liked)), max(1.0, liked / max(1, disliked))
