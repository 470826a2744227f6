"""Rule that decides whether a comment is too vague to train on, and the hint that says what to write instead.

The feedback API returns the hint, and the processor applies the same rule; both find it in `shared.feedback_kinds`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MIN_COMMENT_WORDS: Final = 3
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u0f00-\u0fff\u3005\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff"
)
"""Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Tibetan, Kana, Han."""
UNSPACED_WORD_CHARS: Final = 3
"""Letters of such a script that count as one word."""
_WORD = re.compile(rf"[{_UNSPACED}]{{1,{UNSPACED_WORD_CHARS}}}|[^\W_{_UNSPACED}]+")
_UNINFORMATIVE_WORDS: Final = frozenset(
    "a all answer answers at awful bad be better boring correct could do fix good great hate horrible i improve "
    "incorrect is it job like love make meh more nice no nope not of ok okay poor please pls quite really response "
    "right rubbish should so sucks terrible thanks that the this too try again useless vague very was well wrong yes "
    "you your".split()
)
"""Words that do not say what to change. A comment that has no other words is vague."""

VAGUE_HINT: Final = (
    "Too vague to learn from: say what is missing or wrong, "
    'for example "Add details about the atmosphere of Mars", or send the right answer as a correction.'
)


def is_vague(comment: str) -> bool:
    """Return whether a comment has fewer than three words, or only words that do not say what to change.

    In scripts without spaces, `UNSPACED_WORD_CHARS` letters count as one word. Vowel signs are no letters.
    """
    letters = "".join(char for char in comment if unicodedata.category(char)[0] != "M")
    words = [word.lower() for word in _WORD.findall(letters)]
    return len(words) < MIN_COMMENT_WORDS or all(word in _UNINFORMATIVE_WORDS for word in words)


def hint_for_comment(comment: str) -> str | None:
    """Return what to write instead of a vague comment, or None if it can be trained on."""
    return VAGUE_HINT if is_vague(comment) else None
