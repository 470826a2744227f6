"""Words, numbers, operators and negations of a text: what similarity and agreement compare.

Texts are folded first (`fold`), so that two spellings of one word are equal. Scripts without spaces between words are
split into n-grams of characters, which overlap as words do. Stems are Snowball's, by script: English for the Latin one,
whatever the language, so that a name has one stem in all texts. The rest of the rules are the product's own.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from sys import intern
from typing import Final, TypeVar

import snowballstemmer

from services.trainer.dataset.languages import (
    ENGLISH,
    LATIN,
    NEGATION_PARTS,
    OTHER_SCRIPTS,
    REQUEST_ANYWHERE,
)
from shared.literal_tokens import any_of

_UNITS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_NUMBERS: Final = {word: n for n, word in enumerate(_UNITS)}
_TENS: Final = {
    word: n
    for n, word in zip(
        range(20, 100, 10), "twenty thirty forty fifty sixty seventy eighty ninety".split(), strict=True
    )
}
_NUMERALS: Final = frozenset((*_NUMBERS, *_TENS))
STOP_WORDS: Final = frozenset(ENGLISH.function_words.split())
"""English words that carry no topic."""

# --- memory of results ------------------------------------------------------------------------------------------

T = TypeVar("T")
SHORT_TEXT: Final = 1000
"""Most characters of a text among many whose results are kept."""
SHORT_TEXTS, LONG_TEXTS = 131_072, 4096
"""Texts whose results are kept: all questions and answers of a large snapshot, which reads them many times in turn."""


def memoized(function: Callable[[str], T]) -> Callable[[str], T]:
    """Keep the results of a function of a text. Memory is limited also if all texts are long."""
    short, long = (lru_cache(maxsize=count)(function) for count in (SHORT_TEXTS, LONG_TEXTS))

    @wraps(function)
    def memoized_function(text: str) -> T:
        return short(text) if len(text) <= SHORT_TEXT else long(text)

    return memoized_function


# --- folding ----------------------------------------------------------------------------------------------------

_POINT: Final = "\u066b"
"""Decimal separator within a folded number; no other text contains it, because folding replaces it."""
_ONE_SPELLING: Final = str.maketrans(
    {
        "’": "'",
        "‘": "'",
        "\u2212": "-",
        "\u066a": "%",
        "\u066b": ".",
        "\u066c": ",",
        "ё": "е",
        "Ё": "Е",
        "أ": "ا",
        "إ": "ا",
        "آ": "ا",
        "ى": "ي",
        "ی": "ي",
        "ک": "ك",
        "ة": "ه",
        "ـ": None,
    }
)
"""Typographic variants, and letters that are typed one for the other."""
_VIETNAMESE: Final = re.compile("[\u031b\u0309\u0323\u0302\u0306]")
"""Horn, hook above, dot below, circumflex and breve: with enough of these, accents distinguish words."""
VIETNAMESE_SHARE: Final = 12
"""A text is Vietnamese if more than one of this many characters is one of these marks."""
_ACCENTS: Final = re.compile("([\u0000-\u024f\u0370-\u03ff])[\u0300-\u036f]+")
_OPTIONAL_MARKS: Final = re.compile("[\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670]")
"""Vowel signs of Hebrew and Arabic, which most people leave out."""


def fold(text: str) -> str:
    """Return the text in lower case and in one spelling: compatible characters, digits 0 to 9, no invisible ones.

    Latin and Greek letters lose their accents, except in Vietnamese, where accents make other words. Superscripts
    become `^2`, because `10²` is not `102`.
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text.translate(_COMPATIBLE)).casefold().translate(_ONE_SPELLING)
    apart = unicodedata.normalize("NFD", _OPTIONAL_MARKS.sub("", folded))
    if len(_VIETNAMESE.findall(apart)) * VIETNAMESE_SHARE <= len(apart):
        apart = _ACCENTS.sub(r"\1", apart)
    return unicodedata.normalize("NFC", apart)


class _Compatible(dict[int, str]):
    """Translation of characters that Unicode's compatibility mapping would change too much, or would keep."""

    def __missing__(self, code: int) -> str:
        self[code] = _compatible(chr(code))
        return self[code]


def _compatible(char: str) -> str:
    if char.isascii():
        return char
    if ord(char) in _ONE_SPELLING:
        return _ONE_SPELLING[ord(char)] or ""
    kind, _, codes = unicodedata.decomposition(char).partition(" ")
    if (
        kind == "<super>"
        and (plain := "".join(chr(int(code, 16)) for code in codes.split())) in _SUPERSCRIPTS
    ):
        return "^" + plain
    if kind == "<fraction>":
        return " " + unicodedata.normalize("NFKC", char).replace("\u2044", "/") + " "
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    # Format characters and variation selectors are invisible; U+200B separates words.
    if unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f":
        return " " if char == "\u200b" else ""
    return char


_SUPERSCRIPTS: Final = frozenset("0123456789+-\u2212")
_COMPATIBLE: Final = _Compatible()


# --- words ------------------------------------------------------------------------------------------------------


_HAN_FUNCTION: Final = (
    "的是由了在和与與及或为為被把将將吗嗎呢吧啊也都就从從到于於之其这這那哪个個们們我你您他她它請请"
)
"""Characters that separate words of Chinese, although some are part of a word now and then."""
_HAN: Final = "\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HIRAGANA: Final = "\u3041-\u309f"
_KATAKANA: Final = "\u30a0-\u30fa\u30fc-\u30ff"
_HANGUL: Final = "\u1100-\u11ff\uac00-\ud7ff"
_HAN_SEPARATOR: Final = re.compile(f"[{_HAN_FUNCTION}]")
_PARTICLE: Final = re.compile(
    "(?<=[가-힣]{2})(?:은|는|이|가|을|를|의|에|도|와|과|로|으로|에서|입니다|이에요|예요)$"
)
"""Endings of Korean words. A name that ends so loses a syllable everywhere alike."""
_SYLLABIC: Final = (_HAN, _HIRAGANA, _KATAKANA, _HANGUL)
"""Scripts compared by 2-grams. Korean has spaces, but its particles are written together with the word."""
_ALPHABETIC: Final = ("\u0e00-\u0e7f", "\u0e80-\u0eff", "\u1000-\u109f", "\u1780-\u17ff", "\u0f00-\u0fff")
"""Thai, Lao, Burmese, Khmer and Tibetan: compared by 3-grams."""
_UNSPACED: Final = "".join((*_SYLLABIC, *_ALPHABETIC))


def _letters() -> str:
    """Return a character class of letters, digits and combining marks of scripts with spaces between words.

    The marks are no word characters to Python, which would take the vowels out of Hindi words.
    """
    unspaced = re.compile(f"[{_UNSPACED}]")
    codes = [
        code
        for code in range(0x20000)
        if (chr(code).isalnum() or unicodedata.category(chr(code))[0] == "M")
        and not unspaced.match(chr(code))
        and not 0xFE00 <= code <= 0xFE0F
    ]
    starts = [code for code, before in zip(codes, [-1, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -1], strict=True) if after != code + 1]
    return "[" + "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True)) + "]"


_LETTER: Final = _letters()
_OPERATORS: Final = (
    r"(?<=[a-z])(?:\+\+|\#)(?!\w)"  # C++, C#
    r"|[|&]{2}|\|>|<\||(?<![<>=!|-])(?:[<>=!+*/%^|&:-]?=|<-|->|=>|[<>]|==|===|!==|<=>|>>|<<)(?![<>=|])"
    r"|(?<!\w)!(?=[\w(])"
    r"|(?:(?<=[\d)\]])|(?<=\b[a-z]))(?:\s?(?:\*\*|//|[+*^])\s?|\s[-/]\s)(?=[\d(\[]|[a-z]\b)"
    r"|(?<=\b[a-z])[-/](?=\d|[a-z]\b)"
    r"|[±×÷≠≤≥≈≡∈∉⊂⊃∪∩∧∨¬→←↔⇒∀∃√∞]"
)
_SIGN: Final = r"(?<![^\s(\[{=<>:,;\"'|*/^])-"
_RUNS: Final = "".join(
    [rf"|(?P<two{i}>[{script}]+)" for i, script in enumerate(_SYLLABIC)]
    + [rf"|(?P<three{i}>[{script}]+)" for i, script in enumerate(_ALPHABETIC)]
)
_ASCII_WORD: Final = re.compile("[a-z0-9]+")
_WORD: Final = re.compile(f"(?P<word>{_LETTER}+){_RUNS}")
_TOKEN: Final = re.compile(
    rf"(?P<number>(?:{_SIGN})?(?<!{_LETTER})\d+(?:{_POINT}\d+)?(?!{_LETTER}))"
    rf"|(?P<word>{_LETTER}+){_RUNS}|(?P<operator>{_OPERATORS})"
)
_HINT: Final = re.compile(
    rf"[<>=|&^+*#{_POINT}±×÷≠≤≥≈≡∈∉⊂⊃∪∩∧∨¬→←↔⇒∀∃√∞]|!(?=[\w(])|//|-(?=\d)|\s[-/]\s|\b[a-z][-/]"
)
"""What every text with an operator, a sign or a decimal contains. Others are split by the faster patterns."""
_THOUSANDS: Final = re.compile(
    r"(?<![\w.,])([1-9]\d{0,2})((?:[.,]\d{3})+)(?=[.,]\d+(?!\w|[.,]\d)|(?!\w|[.,]\d))"
)
_DIGIT: Final = re.compile(r"\d")
_DOLLARS: Final = re.compile(r"\$\s*(\d[\d.,]*\d|\d)")
_PERCENT: Final = re.compile(r"%|\bper cent\b")
_DECIMAL: Final = re.compile(r"(?<![\w.,])(\d+)[.,](\d+)(?!\w|[.,]\d)")
_HAN_DIGITS: Final = {char: n for n, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_HAN_POWERS: Final = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "萬": 10_000, "亿": 10**8, "億": 10**8}
_HAN_NUMBER: Final = re.compile(
    "(?:[一二三四五六七八九两兩][十百千万萬亿億]|十[一二三四五六七八九])[零〇一二三四五六七八九十百千万萬亿億]*"
    "|[零〇一二三四五六七八九]{3,}|[一二三四五六七八九十两兩](?=[年月日天元円分秒歳岁周週時时度倍])"
)


def words(text: str) -> list[str]:
    """Return the words in order, folded, with numbers as digits: `Forty-one days` gives `41 days`.

    A number keeps its sign and its decimals (`-5`, `1.5`; `1,000` gives `1000`). Operators between operands are words
    as well, so `x < 5` and `x <= 5` differ, and so do `C++` and `C#`. Text without spaces gives overlapping n-grams.
    """
    return list(_words(text))


@memoized
def _words(text: str) -> tuple[str, ...]:
    plain = _PERCENT.sub(" percent", fold(text))
    if _DIGIT.search(plain):
        plain = _DOLLARS.sub(r"\1 dollars", plain)
        plain = _THOUSANDS.sub(lambda found: found[1] + re.sub(r"[.,]", "", found[2]), plain)
        plain = _DECIMAL.sub(_decimal, plain)
    if not plain.isascii():
        plain = _HAN_NUMBER.sub(lambda found: _han_value(found[0]), plain)
    has_operators = _HINT.search(plain) is not None
    if not has_operators and plain.isascii():
        found = _ASCII_WORD.findall(plain)
        if _NUMERALS.isdisjoint(found):
            return tuple(map(intern, found))
        return _with_numerals((word, "word") for word in found)
    pattern = _TOKEN if has_operators else _WORD
    return _with_numerals((found[0], found.lastgroup or "") for found in pattern.finditer(plain))


def _with_numerals(tokens: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the tokens, given with the name of their pattern, with English numerals as digits and runs as n-grams."""
    out: list[str] = []
    tens: int | None = None
    for word, kind in tokens:
        if kind.startswith("t"):
            plain = _PARTICLE.sub("", _HAN_SEPARATOR.sub(" ", word))
            for run in plain.split() or [word]:
                out += _ngrams(run, 2 if kind.startswith("two") else 3)
            tens = None
            continue
        if tens is not None and 0 < _NUMBERS.get(word, 0) < 10:
            out[-1] = str(tens + _NUMBERS[word])
            tens = None
            continue
        tens = _TENS.get(word)
        out.append(str(_TENS.get(word, _NUMBERS.get(word, word.replace(_POINT, ".").strip()))))
    return tuple(map(intern, out))


def _decimal(found: re.Match[str]) -> str:
    decimals = found[2].rstrip("0")
    return f"{found[1]}{_POINT}{decimals}" if decimals else found[1]


def _han_value(numeral: str) -> str:
    """Return a numeral in Chinese characters as digits: `四十一` gives `41`, `二〇二四` gives `2024`."""
    if not any(char in _HAN_POWERS for char in numeral):
        return "".join(str(_HAN_DIGITS[char]) for char in numeral)
    total = section = digit = 0
    for char in numeral:
        power = _HAN_POWERS.get(char)
        if power is None:
            digit = _HAN_DIGITS[char]
        elif power < 10_000:
            section, digit = section + (digit or 1) * power, 0
        else:
            total, section, digit = (total + section + digit) * power, 0, 0
    return str(total + section + digit)


def _ngrams(run: str, size: int) -> list[str]:
    return [run[i : i + size] for i in range(max(1, len(run) - size + 1))]


# --- stems ------------------------------------------------------------------------------------------------------

_STEMMERS: Final = tuple(
    (re.compile(letters), snowballstemmer.stemmer(language))
    for letters, language in (
        ("[\u0400-\u052f]", "russian"),
        ("[\u0370-\u03ff]", "greek"),
        ("[\u0600-\u06ff]", "arabic"),
        ("[\u0900-\u097f]", "hindi"),
        ("[\u0b80-\u0bff]", "tamil"),
        ("[\u0530-\u058f]", "armenian"),
    )
)
"""Stemmers of scripts, with the name of the most common language. They suit its neighbours less well."""
_ENGLISH_STEMMER: Final = snowballstemmer.stemmer("english")


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Return the Snowball stem of a folded word, by its script."""
    if not word.isascii():
        for letters, stemmer in _STEMMERS:
            if letters.match(word):
                return str(stemmer.stemWord(word))
    return str(_ENGLISH_STEMMER.stemWord(word))


@memoized
def content_stems(text: str) -> tuple[str, ...]:
    """Return the stems of the words that carry the topic, in order."""
    found = words(text)
    empty = _function_words(found)
    return tuple(stem(word) for word in found if word not in empty)


def normalised(text: str) -> str:
    """Return the words as one string. Texts with equal results count as the same text.

    A text without words, such as an emoji, gives its characters.
    """
    return " ".join(words(text)) or fold(text).strip()


@memoized
def numbers(text: str) -> frozenset[str]:
    """Return the words that contain a digit."""
    return frozenset(word for word in words(text) if not word.isalpha() and any(map(str.isdigit, word)))


@memoized
def operators(text: str) -> frozenset[str]:
    """Return the words without letters and digits."""
    return frozenset(word for word in words(text) if not (word.isalnum() or any(map(str.isalnum, word))))


def frequent_question_stems(questions: Iterable[str]) -> frozenset[str]:
    """Return the stems that occur in two or more distinct wordings.

    People who ask do not know the answer, so an answer is about other words than these.
    """
    stems_of = {normalised(question): frozenset(content_stems(question)) for question in questions}
    counts = Counter(word for stems in stems_of.values() for word in stems)
    return frozenset(word for word, count in counts.items() if count > 1)


def spelling(text: str) -> str:
    """Return the text whose characters are compared: the content stems, or all words if there are only stop words."""
    return f" {' '.join(content_stems(text)) or normalised(text)} "


# --- languages --------------------------------------------------------------------------------------------------


def _folded(words_: str) -> frozenset[str]:
    return frozenset(fold(word) for word in words_.split())


_FUNCTION_WORDS: Final = {language.code: _folded(language.function_words) for language in LATIN}
_NEGATIONS: Final = {language.code: _folded(language.negations) for language in LATIN}
_OTHER_FUNCTION_WORDS: Final = _folded(" ".join(language.function_words for language in OTHER_SCRIPTS))
_OTHER_NEGATIONS: Final = _folded(" ".join(language.negations for language in OTHER_SCRIPTS))
_CAPITALISES_NOUNS: Final = frozenset(language.code for language in LATIN if language.capitalises_nouns)


def _latin_language(found: Iterable[str]) -> str:
    """Return the language with the most function words or negations among `found`; English if none has more."""
    found = set(found)
    if _NOT_ENGLISH.isdisjoint(found):
        return ENGLISH.code
    hits = dict.fromkeys(_FUNCTION_WORDS, 0)
    for word in found:
        for code in _LANGUAGES_OF.get(word, ()):
            hits[code] += 1
    best = max(hits, key=hits.__getitem__)
    return best if hits[best] > hits[ENGLISH.code] else ENGLISH.code


_LANGUAGES_OF: Final = {
    word: tuple(code for code in _FUNCTION_WORDS if word in _FUNCTION_WORDS[code] | _NEGATIONS[code])
    for word in frozenset().union(*_FUNCTION_WORDS.values(), *_NEGATIONS.values())
}


_NOT_ENGLISH: Final = frozenset(word for word, codes in _LANGUAGES_OF.items() if ENGLISH.code not in codes)


def _function_words(found: Iterable[str]) -> frozenset[str]:
    """Return the words that carry no topic. Negations are among them, because they are compared on their own."""
    return _TOPICLESS[_latin_language(found)]


_CONTRACTED: Final = frozenset("isn aren wasn doesn didn".split())
"""What is left of English negations before an apostrophe, without words of their own (`won`)."""
_TOPICLESS: Final = {
    code: _FUNCTION_WORDS[code]
    | (_CONTRACTED if code == ENGLISH.code else _NEGATIONS[code])
    | _OTHER_FUNCTION_WORDS
    | _OTHER_NEGATIONS
    for code in _FUNCTION_WORDS
}


@memoized
def is_negated(text: str) -> bool:
    """Return whether a text denies something.

    In English, two negations cancel each other, except for the "no" before an answer. In other languages one is enough,
    because many use two for one.
    """
    found = words(text)
    code = _latin_language(found)
    if code == ENGLISH.code:
        counts = [word in _NEGATIONS[code] for word in found]
        # The "no" of "No, it isn't" repeats the negation that follows.
        denied = sum(counts[1:] if found[:1] == ["no"] and any(counts[1:]) else counts) % 2 == 1
    else:
        denied = not _NEGATIONS[code].isdisjoint(found)
    if denied or text.isascii():
        return denied
    return not _OTHER_NEGATIONS.isdisjoint(found) or any(part in text for part in NEGATION_PARTS)


@memoized
def names(text: str) -> frozenset[str]:
    """Return the stems of words with a capital letter within a sentence: names, in scripts that have capitals.

    German texts give none, because each of their nouns has a capital letter.
    """
    if _latin_language(words(text)) in _CAPITALISES_NOUNS:
        return frozenset()
    found = (name for name in _NAME.findall(text) if name[0].isupper())
    return frozenset(stem(word) for name in found for word in words(name))


_NAME: Final = re.compile(r"(?<![.!?:]\s)(?<!^)(?<![\w'’.-])[^\W\d_]{2,}", re.MULTILINE)
_SENTENCE_END: Final = re.compile(r"[.!?;:,\n。！？；：，、؟،।…]+")
_POLITE: Final = re.compile(
    r"^(?:please|can you|could you|would you|kindly|hi|hello|bitte|por favor|s'il (?:te|vous) plait|per favore|"
    r"пожалуйста|будь ласка|من فضلك|לطفا|请|請|帮我|幫我|麻烦|你能|能不能)\s*"
)
_REQUESTS: Final = tuple(
    (fold(request.strip()), language.code in REQUEST_ANYWHERE, language.code == ENGLISH.code)
    for language in (*LATIN, *OTHER_SCRIPTS)
    for request in language.requests.split(",")
)
"""(folded beginning, whether it counts anywhere in a sentence, whether it must end with a word)"""
_BEGINNINGS: Final = tuple(request for request, _, _ in _REQUESTS)
_ANYWHERE: Final = any_of({request for request, anywhere, _ in _REQUESTS if anywhere})


@memoized
def is_open_request(question: str) -> bool:
    """Return whether a question asks for one of several good answers: to write, suggest, explain or do something."""
    for part in _SENTENCE_END.split(fold(question)):
        sentence = part.strip(" \"'«»“”„()-¿¡")
        while (rest := _POLITE.sub("", sentence)) != sentence:
            sentence = rest
        if not sentence.startswith(_BEGINNINGS) and not _ANYWHERE.search(sentence):
            continue
        for request, anywhere, whole in _REQUESTS:
            if sentence.startswith(request) and not (whole and sentence[len(request) :][:1].isalnum()):
                return True
            if anywhere and request in sentence:
                return True
    return False
