"""Which loss each kind of feedback gets. Corrections train by SFT on the answer's tokens; the other kinds are
collected, and held with the reason that says what they wait for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

HELD_KINDS: Final = {
    "thumbs": "thumbs: held until KTO is there",
    "rating": "rating: held until KTO is there",
    "preference": "preference: held until DPO is there",
    "comment": "comment: says what to change and not what to answer; held (comment_mode: append would train on it)",
}

CommentMode = Literal["hold", "append"]
"""What becomes of a comment that is not vague: held with its reason, or appended to the answer (`appended`)."""

Messages = Sequence[tuple[str, str]]
"""(role, content) in order."""


def as_chat(messages: Messages) -> list[dict[str, str]]:
    """As chat templates take a conversation."""
    return [{"role": role, "content": content} for role, content in messages]


def appended(response: str, comment: str) -> str:
    """What a comment trains under `comment_mode: append`: `target = response + " " + feedback`."""
    return response + " " + comment


def sft(messages: Messages, answer: str) -> dict[str, Any]:
    """One conversational prompt/completion pair as TRL takes it; only the completion carries loss."""
    return {"prompt": as_chat(messages), "completion": as_chat([("assistant", answer)])}
