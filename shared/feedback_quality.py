"""Whether feedback can be trained on, and what to write instead where it cannot.

The door answers with it, the processor decides by it: one rule, in one place.
"""

from __future__ import annotations

import re
from typing import Final

from shared.events import Feedback

MIN_COMMENT_WORDS: Final = 3
_WORD = re.compile(r"[^\W_]+", re.UNICODE)
_EMPTY_PRAISE_OR_BLAME: Final = frozenset(
    "a all answer answers at awful bad be better boring correct could do fix good great hate horrible i improve "
    "incorrect is it job like love make meh more nice no nope not of ok okay poor please pls quite really response "
    "right rubbish should so sucks terrible thanks that the this too try again useless vague very was well wrong yes "
    "you your".split()
)
"""Words that say nothing about what to change; a comment of nothing else is vague."""

VAGUE_HINT: Final = (
    "Too vague to learn from: say what is missing or wrong, "
    'for example "Add details about the atmosphere of Mars", or send the right answer as a correction.'
)


def is_vague(comment: str) -> bool:
    """A comment is vague if fewer than three words are left, or all of them only praise or blame."""
    words = [word.lower() for word in _WORD.findall(comment)]
    return len(words) < MIN_COMMENT_WORDS or all(word in _EMPTY_PRAISE_OR_BLAME for word in words)


def hint_for(event: Feedback) -> str | None:
    """None if the event can be trained on (or takes one back); else what to write instead."""
    if event.kind == "comment" and is_vague(event.value):
        return VAGUE_HINT
    return None
