"""Which characters a text may contain, which edits are a change, and which lengths may fit."""

from __future__ import annotations

import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.dataset.filters import MAX_CHARS_PER_TOKEN, first_fault
from services.trainer.dataset.text_changes import is_same_text
from services.trainer.dataset.text_characters import MAX_INVISIBLE_RUN, fault_of_characters
from services.trainer.dataset.words import (
    SHORT_TEXT,
    fold,
    is_open_request,
    memoized,
    normalised,
    numbers,
    operators,
    words,
)
from tests.trainer_factories import row

FORMAT = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf"]
CONTROL = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cc"]
FORBIDDEN_ALONE = {
    *map(chr, range(0x202A, 0x202F)),
    *map(chr, range(0x2066, 0x2070)),
    *map(chr, range(0xFFF9, 0xFFFC)),
    *map(chr, range(0xE0001, 0xE0080)),
}
"""Overrides, deprecated and hiding characters, tags, and changes of direction that are not closed."""
LETTERS = st.text(st.characters(categories=["Lu", "Ll", "Lo", "Nd", "Po", "So", "Zs"]), max_size=20)


@pytest.mark.parametrize("char", FORMAT, ids=lambda char: f"U+{ord(char):04X}")
def test_each_format_character_is_decided(char: str) -> None:
    assert (fault_of_characters(f"a{char}b") is not None) is (char in FORBIDDEN_ALONE)


@given(LETTERS, st.sampled_from(CONTROL), LETTERS)
def test_control_characters_other_than_white_space_do_not_train(before: str, char: str, after: str) -> None:
    assert (fault_of_characters(before + char + after) is None) is (char in "\t\n\f\r\x85")


def nested(depth: int) -> str:
    return "x" if depth == 0 else f"a\u2067{nested(depth - 1)}\u2069b\u202b{depth}\u202c"


@given(st.integers(1, 5), st.data())
def test_changes_of_direction_train_only_if_each_is_closed(depth: int, data: st.DataObject) -> None:
    text = nested(depth)
    assert fault_of_characters(text) is None
    marks = [i for i, char in enumerate(text) if char in "\u2067\u2069\u202b\u202c"]
    removed = data.draw(st.sampled_from(marks))
    assert fault_of_characters(text[:removed] + text[removed + 1 :]) is not None
    assert fault_of_characters(text[: marks[0] + 1] + "\n" + text[marks[0] + 1 :]) is not None


@given(st.binary(min_size=1, max_size=40), st.sampled_from(["tags", "selectors", "bits"]), LETTERS)
def test_text_hidden_in_invisible_characters_does_not_train(secret: bytes, how: str, shown: str) -> None:
    match how:
        case "tags":
            hidden = "".join(chr(0xE0020 + byte % 95) for byte in secret)
        case "selectors":
            hidden = "".join(chr(0xFE00 + byte % 16) + chr(0xE0100 + byte % 240) for byte in secret)
        case _:
            hidden = "".join("\u200b\u200c"[byte >> bit & 1] for byte in secret for bit in range(8))
    assert fault_of_characters(f"{shown}😀{hidden}{shown}") is not None


@given(st.integers(1, MAX_INVISIBLE_RUN), st.sampled_from("\u200c\u200d\u00ad\u200e\u2060"))
def test_few_invisible_characters_in_a_row_train(count: int, char: str) -> None:
    assert fault_of_characters(f"می{char * count}شود") is None
    assert fault_of_characters(f"می{char * (MAX_INVISIBLE_RUN + 1)}شود") is not None


# --- changes ----------------------------------------------------------------------------------------------------

SENTENCES = (
    "The answer is 5",
    "It was Ida Voss, who made it",
    "Die Straße ist 3,5 km lang",
    "答案是五",
    "उत्तर पाँच है",
    "Ответ: пять",
    "الجواب خمسة",
)
LAYOUTS = st.sampled_from(
    ["{}.", " {}", "{}\n", "{}!", "{} ", "{}。", "\ufeff{}", "{}।", "{}؟", "{}…", "\u200e{}", "{}. "]
)


@given(st.sampled_from(SENTENCES), LAYOUTS, LAYOUTS, st.sampled_from([" ", "  ", "\n", "\u00a0", "\t "]))
def test_layout_alone_is_no_change(sentence: str, one: str, other: str, space: str) -> None:
    edited = other.format(sentence.replace(" ", space))
    if sentence[-1].isdigit() and "!" in one + other:
        return  # "5!" is a factorial
    assert is_same_text(edited, one.format(sentence))


@pytest.mark.parametrize(
    ("original", "answer"),
    [
        ("5", "-5"),
        ("The answer is 5.", "The answer is −5."),
        ("x < 5", "x <= 5"),
        ("Use x == y.", "Use x != y."),
        ("x > 3", "x < 3"),
        ("It is written in C#.", "It is written in C++."),
        ("true", "True"),
        ("The flag is `true`.", "The flag is `True`."),
        ("20 Mb", "20 MB"),
        ("i met polish people", "I met Polish people"),
        ("Cafe", "Café"),
        ("ma", "má"),
        ("ou", "où"),
        ("el ano", "el año"),
        ("کتاب ها را میخوانم", "کتاب‌ها را می‌خوانم"),
        ("Lets eat grandma", "Let's eat, grandma"),
        ("15", "15 %"),
        ("20 $", "20 €"),
        ("3.5", "35"),
        ("102", "10²"),
        ("1,5", "1.5"),
        ("a / b", "a // b"),
        ("xs[1]", "xs[-1]"),
        ("console.log(x)", "console.log(x);"),
        ("f('a')", 'f("a")'),
        ("say “hi”: f(“a”)", 'say “hi”: f("a")'),
        ("if x:\n    f()\n    g()", "if x:\n    f()\ng()"),
        ("all:\n    echo hi", "all:\n\techo hi"),
        ("def f():\n    return 1", "def F():\n    return 1"),
        ("let x = 5", "Let x = 5"),
        ("4", "4!"),
        ("👍", "👎"),
        ("👍", "👍🏿"),
        ("👨👩👧", "👨‍👩‍👧"),
        ("?", "!?x"),
        ("A ∪ B", "A ∩ B"),
        ("\\d*", "\\d+"),
        ("^abc", "^abc$"),
        ("a, b", "- a\n- b"),
    ],
)
def test_edit_that_changes_something_is_a_change(original: str, answer: str) -> None:
    assert not is_same_text(answer, original)
    assert first_fault(row("What?", answer, original=original)) is None


@given(st.sampled_from(SENTENCES), st.data())
def test_any_other_letter_or_digit_is_a_change(sentence: str, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from([i for i, char in enumerate(sentence) if char.isalnum() and i]))
    other = data.draw(st.sampled_from([char for char in "q7ßéж語-" if char != sentence[at]]))
    assert not is_same_text(sentence[:at] + other + sentence[at + 1 :], sentence)


# --- folding ----------------------------------------------------------------------------------------------------


@given(st.text(max_size=40))
def test_folding_again_changes_nothing(text: str) -> None:
    once = fold(text)
    assert fold(once) == once
    assert words(text) == words(text)
    assert not normalised(text) or normalised(text).strip()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("41 days", "Forty-one days"),
        ("४१ दिन", "41 दिन"),
        ("٤١ يوما", "41 يوما"),
        ("۴۱ روز", "٤١ روز"),
        ("４１日", "41日"),
        ("四十一天", "41天"),
        ("1,000 items", "1000 items"),
        ("1.500,50 Euro", "1500.5 Euro"),
        ("São Paulo", "Sao Paulo"),
        ("שָׁלוֹם", "שלום"),
        ("می‌شود", "میشود"),
        ("كتاب", "کتاب"),
        ("ёжик", "ежик"),
        ("ﬁne", "fine"),
        ("co\u00adoperate", "cooperate"),
    ],
)
def test_spellings_of_one_text_are_equal(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5 degrees", "5 degrees"),
        ("C++", "C#"),
        ("C++", "C"),
        ("x < 5", "x <= 5"),
        ("x = 5", "x == 5"),
        ("a && b", "a || b"),
        ("3.5", "35"),
        ("10²", "102"),
        ("bán", "bạn"),
        ("की", "का"),
        ("ไม้", "ไม่"),
        ("👍", "👎"),
    ],
)
def test_texts_with_another_meaning_are_not_equal(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


WORDS = (
    "twenty",
    "one",
    "seven",
    "41",
    "x",
    "C++",
    "<=",
    "10²",
    "½",
    "no",
    "isn't",
    "图书馆",
    "十二",
    "ไม่",
    "👍",
    "-5",
)


@given(st.lists(st.sampled_from(WORDS) | LETTERS, max_size=8).map(" ".join))
def test_numbers_and_operators_are_the_words_with_and_without_them(text: str) -> None:
    found = words(text)
    assert numbers(text) == {word for word in found if any(char.isdigit() for char in word)}
    assert operators(text) == {word for word in found if not any(char.isalnum() for char in word)}


@given(st.lists(st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=5), max_size=8))
def test_numerals_elsewhere_in_a_text_change_no_word(plain: list[str]) -> None:
    assert words(" ".join([*plain, "and", "forty-one"])) == [*words(" ".join(plain)), "and", "41"]


OPEN = [
    "Write a poem",
    "please suggest a name",
    "Kannst du mir ein Gedicht schreiben",
    "请写一首诗",
    "напиши стих",
]


@given(before=LETTERS, request=st.sampled_from(OPEN), end=st.sampled_from("?.! \n。"))
def test_request_counts_in_any_sentence_of_a_question(before: str, request: str, end: str) -> None:
    assert is_open_request(request) is True
    assert is_open_request(f"{before}. {request}{end}") is True
    assert is_open_request(f"{request}{end} {before}") is True


def test_function_of_a_text_is_computed_once_for_short_and_long_texts() -> None:
    seen: list[str] = []

    @memoized
    def length(text: str) -> int:
        seen.append(text)
        return len(text)

    texts = ["", "a", "b" * SHORT_TEXT, "c" * (SHORT_TEXT + 1), "a"]
    assert [length(text) for text in texts * 2] == [len(text) for text in texts * 2]
    assert seen == texts[:4]


def test_numbers_keep_sign_and_decimals() -> None:
    assert numbers("from -5 to 3.50, or 10-20, or 1,000,000.25") == {"-5", "3.5", "10", "20", "1000000.25"}


# --- length -----------------------------------------------------------------------------------------------------


@given(st.integers(16, 8192), st.integers(0, 3))
def test_length_limit_follows_the_token_limit(max_tokens: int, beyond: int) -> None:
    question = "Who?"
    answer = "很" * (max_tokens * MAX_CHARS_PER_TOKEN - len(question) + beyond)
    found = first_fault(row(question, answer), max_tokens=max_tokens)
    assert (found is not None) is (beyond > 0)
    assert first_fault(row(question, answer)) is None
