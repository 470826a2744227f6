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

VAGUE_CODE: Final = "vague_comment"
"""The hint without a language, for apps that have texts of their own."""
VAGUE_HINT: Final = (
    "Too vague to learn from: say what is missing or wrong, "
    'for example "Add details about the atmosphere of Mars", or send the right answer as a correction.'
)

_HINTS: Final = (
    (
        re.compile("[\u3041-\u30ff]"),
        "具体的でないため学習に使えません。何が足りないか、何が間違っているかを書いてください"
        "（例：「火星の大気について説明を加えてください」）。または、正しい回答を修正として送ってください。",
    ),
    (
        re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]"),
        "내용이 너무 모호해서 학습에 사용할 수 없습니다. 무엇이 빠졌거나 틀렸는지 적어 주세요"
        "(예: “화성의 대기에 대한 설명을 추가해 주세요”). 또는 올바른 답변을 수정으로 보내 주세요.",
    ),
    (
        re.compile("[\u3400-\u9fff\uf900-\ufaff]"),
        "内容太笼统，无法用于学习。请说明缺少什么或哪里有误（例如：“请补充火星大气的成分”），或者把正确的回答作为更正发送。",
    ),
)
"""Hints in languages that their script identifies: Japanese (Kana), Korean (Hangul), Chinese (Han without Kana)."""


def is_vague(comment: str) -> bool:
    """Return whether a comment has fewer than three words, or only words that do not say what to change.

    In scripts without spaces, `UNSPACED_WORD_CHARS` letters count as one word. Vowel signs are no letters.
    """
    letters = "".join(char for char in comment if unicodedata.category(char)[0] != "M")
    words = [word.lower() for word in _WORD.findall(letters)]
    return len(words) < MIN_COMMENT_WORDS or all(word in _UNINFORMATIVE_WORDS for word in words)


def hint_for_comment(comment: str) -> str | None:
    """Return what to write instead of a vague comment, or None if it can be trained on.

    The hint is in the comment's language if its script identifies one, else in English; `VAGUE_CODE` has no language.
    """
    if not is_vague(comment):
        return None
    return next((hint for script, hint in _HINTS if script.search(comment)), VAGUE_HINT)
