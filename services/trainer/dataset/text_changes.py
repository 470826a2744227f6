"""Whether two texts differ in more than their layout. In doubt they differ: a correction is somebody's work.

Not a change is what a client adds on its own: white space, punctuation at the end, the shape of quotation marks, byte
order marks and other characters without meaning, several words put into capitals, and a capital letter at the beginning
of the text. Everything else is a change: a sign, an operator, a digit, an accent, a comma, letter case of some of the
words, a joiner that is spelling.

In code, white space at the beginning of a line, the end of a line, punctuation at the end, quotation marks and the
case of each letter count as well. A text is code if one of the two has code's characters (`_CODE`).
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from typing import Final

MIN_WORDS_IN_CAPITALS: Final = 3
_CODE: Final = re.compile(
    r"[`{}\\|]|[;=<>$#@^~](?=\S)|[<>=]\s|\w\(|\w\[|\w_\w|[a-z][A-Z]|::|//|->|\+\+|;\s*$|\n[ \t]+\S"
    r"|^\s*(?:def|class|return|import|select|let|const|var|if|for|while)\b",
    re.MULTILINE,
)
_TYPOGRAPHY: Final = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "„": '"', "\u00a0": " ", "\u202f": " "}
)
_MEANINGLESS: Final = re.compile(
    "[\u00ad\u200e\u200f\u061c\u2060\ufeff\ufe0e\ufe0f\u2066-\u2069\u202a-\u202c]"
)
_AT_END: Final = re.compile(r"(?:[\s.?。！？؟।…،、]|(?<![\d)])!)+$")
_AROUND_PUNCTUATION: Final = re.compile(r"\s*([^\w\s'\"+\-*/<>=])\s*")


def is_same_text(one: str, other: str) -> bool:
    """Return whether `one` is `other` apart from its layout (see above)."""
    if one == other:
        return True
    one, other = (unicodedata.normalize("NFC", _MEANINGLESS.sub("", text)) for text in (one, other))
    if _CODE.search(one) or _CODE.search(other):
        return _lines(one) == _lines(other)
    in_capitals = one.isupper() and len(one.split()) >= MIN_WORDS_IN_CAPITALS
    one, other = _prose(one), _prose(other)
    return one == other or (in_capitals and one.upper() == other.upper())


def _lines(text: str) -> list[str]:
    """Return the lines of code: with their indentation, without spaces at their ends or more than one between words."""
    lines = (line.rstrip() for line in textwrap.dedent(text).splitlines())
    return [
        line[: len(line) - len(line.lstrip())] + re.sub(r"\s+", " ", line.lstrip()) for line in lines if line
    ]


def _prose(text: str) -> str:
    plain = " ".join(_AT_END.sub("", text.translate(_TYPOGRAPHY)).split())
    plain = _AROUND_PUNCTUATION.sub(r"\1", plain)
    return plain[:1].lower() + plain[1:] if " " in plain else plain
