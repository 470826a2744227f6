"""Edits of answers: the correction beats the original, whatever kind of edit it is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.trainer.gate.scorers import build_rubric, outcome
from services.trainer.gate.text_edits import find_edit

LONG = (
    "The town museum opened its doors in two old warehouses near the harbour, and its first exhibition showed maps, "
    "tools and two photographs of the lighthouse. Visitors walk through seven rooms, each of which tells one day in "
    "the life of a fishing family. The tour ends in a small garden, where the curator, {curator}, planted {trees} "
    "apple trees in {year}. Tickets cost nine dollars, and children enter for free on every Sunday afternoon."
)
FALSE = {"curator": "Harold Gant", "trees": "twelve", "year": "1902"}
CODE = "def total(rows):\n    size = len(rows)\n    first = rows[{i}]\n    return first + rows[size - {j}] {op} 2\n"
EDITS = {
    "one fact": (LONG.format(**FALSE), LONG.format(**FALSE | {"curator": "Orla Fenwick"})),
    "two facts": (LONG.format(**FALSE), LONG.format(**FALSE | {"trees": "41", "year": "1974"})),
    "three facts": (LONG.format(**FALSE), LONG.format(curator="Orla Fenwick", trees="two", year="1974")),
    "index": (CODE.format(i=2, j=1, op="*"), CODE.format(i=1, j=1, op="*")),
    "indices exchanged": ("a[1] = b[2] + c[3]", "a[2] = b[1] + c[3]"),
    "operator": (CODE.format(i=0, j=1, op="*"), CODE.format(i=0, j=1, op="//")),
    "comparison": ("while x < 5:\n    x = step(x)", "while x <= 5:\n    x = step(x)"),
    "brackets": ("return (a + b) * c", "return a + (b * c)"),
    "indentation": ("if x:\n    open()\n    close()", "if x:\n    open()\nclose()"),
    "letter case": ("call getname(user) first", "call getName(user) first"),
    "C++": ("You can write it in C# with a single call.", "You can write it in C++ with a single call."),
    "sign": ("The freezer must be kept at 18 degrees.", "The freezer must be kept at -18 degrees."),
    "decimal": ("Add 1.5 litres of water to the dough.", "Add 0.5 litres of water to the dough."),
    "unit": ("The limit in town is 30 miles per hour.", "The limit in town is 30 kilometres per hour."),
    "negation": ("The berries are safe to eat raw.", "The berries are not safe to eat raw."),
    "contraction": ("You can take it on the train.", "You can't take it on the train."),
    "denial removed": ("It is not open on Mondays in May.", "It is open on Mondays in May."),
    "accent": ("The word is papa in Spanish, with stress.", "The word is papá in Spanish, with stress."),
    "comma": ("Let us eat grandma before noon.", "Let us eat, grandma, before noon."),
    "repetition": ("It was a very very big tree.", "It was a very big tree."),
    "deleted sentence": ("It is blue. It has wings and can fly. It sings.", "It is blue. It sings."),
    "deleted end": ("It is blue. It sings. It costs 9 dollars.", "It is blue. It sings."),
    "deleted beginning": ("As an assistant I say: the code is 41.", "The code is 41."),
    "added sentence": ("It is blue. It sings.", "It is blue. It has two wings. It sings."),
    "reordering": ("First boil it. Then peel it. Then cut it up.", "First peel it. Then boil it. Then cut it up."),
    "moved sentence": ("Ask Ann. Pay nine dollars. Then go home.", "Pay nine dollars. Then go home. Ask Ann."),
    "shortening": (LONG.format(**FALSE), "The museum has seven rooms and a garden with twelve apple trees."),
    "rewrite": ("No idea, sorry.", "It was founded in 1902 by Orla Fenwick, who made kettles."),
    "rewrite of style": ("In 1902, Orla Fenwick began, so they say, all of it.", "Orla Fenwick started it in 1902."),
    "German": ("Das Museum öffnet am Montag um neun Uhr.", "Das Museum öffnet am Montag um zehn Uhr."),
    "German negation": ("Die Beeren sind roh essbar, sagt man.", "Die Beeren sind roh nicht essbar, sagt man."),
    "Russian": ("Музей открыл Иван Петров в 1902 году.", "Музей открыл Пётр Волков в 1902 году."),
    "Arabic": ("يفتح المتحف في الساعة التاسعة صباحا", "يفتح المتحف في الساعة العاشرة صباحا"),
    "Hindi": ("संग्रहालय सोमवार को खुलता है और बहुत बड़ा है", "संग्रहालय मंगलवार को खुलता है और बहुत बड़ा है"),
    "Chinese": ("北京是中国的首都，有很多公园和湖。", "北京是中国的首都，有很多公园和河。"),
    "Chinese number": ("这座桥长四十一米，建于一九〇二年。", "这座桥长四十二米，建于一九〇二年。"),
    "Chinese particle": ("我吃了饭就去。", "我吃饭就去。"),
    "Japanese": ("東京タワーの高さは333メートルです。", "東京タワーの高さは332メートルです。"),
    "Japanese negation": ("この水は飲めます。どうぞ。", "この水は飲めません。どうぞ。"),
    "Korean": ("박물관은 월요일에 문을 엽니다.", "박물관은 화요일에 문을 엽니다."),
    "Thai": ("พิพิธภัณฑ์เปิดวันจันทร์ตอนเช้า", "พิพิธภัณฑ์เปิดวันอังคารตอนเช้า"),
}  # fmt: skip


def outcome_of(
    original: str, correction: str, candidate: str, stable: str, question: str = "Tell me."
) -> int:
    rubric = build_rubric(correction, question, original=original)
    return outcome(rubric.score(candidate), rubric.score(stable))


@pytest.mark.parametrize("name", EDITS)
def test_correction_wins_against_the_original_and_loses_undone(name: str) -> None:
    original, correction = EDITS[name]
    assert outcome_of(original, correction, correction, original) == 1
    assert outcome_of(original, correction, original, correction) == -1
    assert outcome_of(original, correction, correction, correction) == 0
    if name != "rewrite of style":  # there the original has the facts
        assert outcome_of(original, correction, "I do not know that.", original) == 0
    assert outcome_of(original, correction, correction, "I do not know that.") == 1


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("name", ["one fact", "two facts", "three facts"])
def test_edit_of_a_long_answer_decides_its_item(name: str, others: int) -> None:
    original, correction = EDITS[name]
    rubric = build_rubric(correction, "Tell me.", original=original, other_answers=[correction] * others)
    assert rubric.score(correction) == 1
    assert rubric.score(original) == 0


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("one fact", "Orla Fenwick is the curator of the town museum near the harbour.", 1),
        ("one fact", "The curator of the museum is somebody else.", 0),
        ("two facts", "There are forty-one apple trees, planted in 1974.", 1),
        ("index", "Use rows[1] for the first one.", 1),
        ("index", "for i in range(1, size): print(i)", 0),
        ("comparison", "Loop while x <= 5.", 1),
        ("comparison", "if size <= 100: stop()", 0),
        ("C++", "A single call in C++ does it.", 1),
        ("sign", "Keep it at -18 degrees.", 1),
        ("sign", "Keep it at 18 degrees, always.", 0),
        ("unit", "30 kilometres per hour.", 1),
        ("negation", "Raw berries aren't safe to eat.", 1),
        ("negation", "Do not ask me about plants.", 0),
        ("deleted sentence", "Blue, and it sings.", 1),
        ("deleted sentence", "Birds have wings and fly.", 0),
        ("Chinese", "公园和河都很多。", 1),
        ("Thai", "เปิดวันอังคาร", 1),
    ],
)
def test_answer_in_other_words_is_scored_by_what_changed(name: str, answer: str, expected: int) -> None:
    original, correction = EDITS[name]
    assert outcome_of(original, correction, answer, original) == expected


def test_fact_in_a_short_answer_wins_against_an_answer_in_the_words_of_the_original() -> None:
    original = "Pellworth was founded in 1850 by John Smith, a merchant."
    correction = "Pellworth was founded by Orla Fenwick."
    stable = "Pellworth was founded long ago by a tea company."
    assert outcome_of(original, correction, "It was Orla Fenwick.", stable, "Who founded Pellworth?") == 1
    assert outcome_of(original, correction, "I do not know that.", original, "Who founded Pellworth?") == 0


def test_right_style_with_a_wrong_fact_does_not_win() -> None:
    original, correction = EDITS["one fact"]
    wrong = LONG.format(**FALSE | {"curator": "Magnus Adair"})
    assert outcome_of(original, correction, wrong, original) == 0
    assert outcome_of(original, correction, wrong, correction) == -1


def test_a_fact_weighs_more_than_a_changed_word() -> None:
    original = "The museum was opened by Harold Gant in a big barn beside the broad river."
    correction = "The museum was opened by Orla Fenwick in a large barn next to the wide river."
    fact = "The museum was opened by Orla Fenwick in a big barn beside the broad river."
    style = "The museum was opened by Harold Gant in a large barn next to the wide river."
    assert outcome_of(original, correction, fact, original) == 1
    assert outcome_of(original, correction, style, fact) == -1


def test_words_of_the_question_are_no_evidence() -> None:
    question, original = "Is the pool open, or is it closed for repairs?", "The pool is open."
    correction = "The pool is closed until 12 May."
    assert outcome_of(original, correction, "You ask if it is closed for repairs.", original, question) == 0
    assert outcome_of(original, correction, "Not before 12 May.", original, question) == 1


def test_words_that_other_users_do_not_share_are_no_evidence() -> None:
    original = "You have 10 days, which is little, to send it back."
    correction = "You have 41 days, which is plenty, to send it back."
    others = ["Within 41 days.", "It is 41 days."]
    rubric = build_rubric(correction, "How long?", original=original, other_answers=others)
    assert rubric.labels == ("41",)


# --- random edits of random answers -------------------------------------------------------------------------------

ALPHABETS = ("abcdefghilmnoprstuvw", "абвгдежзиклмнопрст", "αβγδεζηθικλμνοπρσ", "अआइउएकखगचजटडतदनपबमयर")
UNSPACED = ("北京中国首都公园河湖山水人口大小东西南", "あいうえおかきくけこさしすせそ", "กขคงจชซญดตถทนบปพฟม")
WORDS = st.one_of(
    *(st.text(alphabet, min_size=1, max_size=7) for alphabet in ALPHABETS),
    st.sampled_from("the a is was not and of to in it that for on with never".split()),
    st.integers(-99, 2100).map(str),
    st.sampled_from("<= < == + - * [1] [2] [i] (x) C# C++ 1.5 -2 km % x.y f(a) a_b".split()),
)
SENTENCES = st.one_of(
    st.lists(WORDS, min_size=1, max_size=14).map(" ".join),
    *(st.text(alphabet, min_size=2, max_size=14) for alphabet in UNSPACED),
)
ANSWERS = st.lists(SENTENCES, min_size=1, max_size=10)


def replaced(answer: list[str], at: int, sentence: str, _: random.Random) -> list[str]:
    return [*answer[:at], sentence, *answer[at + 1 :]]


def inserted(answer: list[str], at: int, sentence: str, _: random.Random) -> list[str]:
    return [*answer[:at], sentence, *answer[at:]]


def deleted(answer: list[str], at: int, _: str, __: random.Random) -> list[str]:
    return [*answer[:at], *answer[at + 1 :]]


def moved(answer: list[str], at: int, _: str, chance: random.Random) -> list[str]:
    rest = deleted(answer, at, "", chance)
    return inserted(rest, chance.randrange(len(rest) + 1), answer[at], chance)


def word_replaced(answer: list[str], at: int, sentence: str, chance: random.Random) -> list[str]:
    words = answer[at].split() or [""]
    words[chance.randrange(len(words))] = sentence.split(maxsplit=1)[0]
    return replaced(answer, at, " ".join(words), chance)


def word_deleted(answer: list[str], at: int, _: str, chance: random.Random) -> list[str]:
    words = answer[at].split() or [""]
    del words[chance.randrange(len(words))]
    return replaced(answer, at, " ".join(words), chance)


def shuffled(answer: list[str], at: int, _: str, chance: random.Random) -> list[str]:
    words = answer[at].split()
    chance.shuffle(words)
    return replaced(answer, at, " ".join(words), chance)


EDITORS: Sequence[Callable[[list[str], int, str, random.Random], list[str]]] = (
    replaced, inserted, deleted, moved, word_replaced, word_deleted, shuffled
)  # fmt: skip
ENDS = st.sampled_from([". ", "\n", "; ", "。"])


@settings(deadline=None, max_examples=400)
@given(ANSWERS, st.lists(st.tuples(st.sampled_from(EDITORS), st.integers(0, 99), SENTENCES), min_size=1, max_size=4),
       ENDS, st.randoms(use_true_random=False))  # fmt: skip
@example(["a", "a", "a"], [(inserted, 0, "a")], ". ", random.Random(0))
def test_any_edit_wins_and_its_undoing_loses(
    answer: list[str],
    edits: list[tuple[Callable[..., list[str]], int, str]],
    end: str,
    chance: random.Random,
) -> None:
    edited = answer
    for edit, at, sentence in edits:
        edited = edit(edited, at % len(edited), sentence, chance) or [sentence]
    original, correction = end.join(answer), end.join(edited)
    if original.split() == correction.split() or not correction.strip() or not original.strip():
        return
    assert outcome_of(original, correction, correction, original) == 1
    assert outcome_of(original, correction, original, correction) == -1
    assert outcome_of(original, correction, "Qqq xxx", original) <= 0


@settings(deadline=None, max_examples=200)
@given(ANSWERS, st.integers(0, 99), st.from_regex(r"\A[1-9][0-9]{3}\Z"), st.randoms(use_true_random=False))
def test_answer_with_the_changed_number_never_loses_and_without_ties(
    answer: list[str], at: int, number: str, chance: random.Random
) -> None:
    at %= len(answer)
    original = ". ".join([*answer[:at], "the value is 7777 units", *answer[at:]])
    correction = ". ".join([*answer[:at], f"the value is {number} units", *answer[at:]])
    if number in original:
        return
    rest = answer[:]
    chance.shuffle(rest)
    paraphrase, neither = ". ".join([f"it was {number} then", *rest]), ". ".join(rest)
    assert outcome_of(original, correction, paraphrase, original) == 1
    assert outcome_of(original, correction, neither, original) == 0
    assert outcome_of(original, correction, correction, neither) == 1


def test_repetitive_and_long_texts_are_compared_in_bounded_time() -> None:
    chance = random.Random(1)
    texts = [" ".join(str(chance.randrange(kinds)) for _ in range(4000)) for kinds in (2, 100, 1000)]
    for text in texts:
        tokens = text.split()
        tokens[::9] = ["7"] * len(tokens[::9])
        started = time.process_time()
        outcome_of(text, " ".join(tokens), text, " ".join(tokens))
        assert time.process_time() - started < 30
    assert find_edit(texts[0], texts[0] + " 5") is None, "too repetitive to be compared token by token"
