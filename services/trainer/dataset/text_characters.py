"""Characters that a text may contain: which invisible ones are spelling, and which hide text.

| characters | allowed |
| --- | --- |
| tab, line feed, form feed, carriage return, next line (U+0085) | yes |
| other control characters, such as NUL and ESC | no |
| joiners U+200C and U+200D (Persian, Indic scripts, emoji), U+200B (Thai, Khmer), U+2060, U+180E | yes |
| soft hyphen U+00AD, byte order mark U+FEFF, invisible operators of mathematics U+2061 to U+2064 | yes |
| direction marks U+200E, U+200F, U+061C | yes |
| direction isolates U+2066 to U+2069 and embeddings U+202A to U+202C | if each is closed in its line |
| direction overrides U+202D and U+202E, deprecated format characters U+206A to U+206F | no |
| visible format characters, such as Arabic number signs and Syriac, Kaithi, Egyptian and musical ones | yes |
| interlinear annotations U+FFF9 to U+FFFB, lone surrogates | no |
| tags U+E0020 to U+E007F | as the flag of a region (U+1F3F4, 3 to 6 tags, U+E007F) only |
| variation selectors | one at a time |
| more than `MAX_INVISIBLE_RUN` invisible characters in a row | no: they spell nothing, but can encode a text |

Private characters, unassigned ones (newer emoji) and all other text are allowed.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_INVISIBLE_RUN: Final = 4

_WHITESPACE: Final = frozenset("\t\n\f\r\x85")
_HIDING: Final = frozenset("\u202d\u202e\u206a\u206b\u206c\u206d\u206e\u206f\ufff9\ufffa\ufffb\U000e0001")
_CLOSES: Final = dict.fromkeys("\u2066\u2067\u2068", "\u2069") | dict.fromkeys("\u202a\u202b", "\u202c")
_REGION_FLAG: Final = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")
_TAGS: Final = re.compile("[\U000e0020-\U000e007f]")
_SELECTORS: Final = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{2}")
_INVISIBLE: Final = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202c\u2060-\u2064\u2066-\u2069\ufeff"
    rf"\ufe00-\ufe0f\U000e0100-\U000e01ef]{{{MAX_INVISIBLE_RUN + 1}}}"
)


def fault_of_characters(text: str) -> str | None:
    """Return what the text contains that it must not (table in the module docstring), or None."""
    if text.isascii() and text.isprintable():
        return None
    for char in text:
        if char in _HIDING:
            return f"U+{ord(char):04X} hides text"
        if unicodedata.category(char) in ("Cc", "Cs") and char not in _WHITESPACE:
            return f"U+{ord(char):04X}"
    if _TAGS.search(_REGION_FLAG.sub("", text)):
        return "tags outside a flag hide text"
    if _SELECTORS.search(text) or _INVISIBLE.search(text):
        return "a run of invisible characters hides text"
    if not all(map(_is_balanced, text.splitlines())):
        return "a change of direction is not closed in its line"
    return None


def _is_balanced(line: str) -> bool:
    """Return whether every isolate and embedding is closed in the line, in order."""
    open_: list[str] = []
    for char in line:
        if char in _CLOSES:
            open_.append(_CLOSES[char])
        elif char in ("\u2069", "\u202c") and (not open_ or open_.pop() != char):
            return False
    return not open_
