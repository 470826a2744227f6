"""Context of a question takes no vote away: a minority is outvoted after any story, in any wording.

What names the subject of a question is no story, wherever it stands.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from services.trainer.dataset.agreement import corrections_of, find_agreement
from services.trainer.dataset.stories import without_stories
from tests.unit.test_trainer_subjects import COUNTS, NAMES, PLACES, THINGS, WORDINGS, Given, training

WHEN = "This morning|Last Saturday|Two weeks ago|Late on Sunday|Yesterday after work|At half past five".split(
    "|"
)
WHO = "my daughter and I|the three of us|our neighbours|my husband|an old colleague|half of the club".split(
    "|"
)
WHAT = (
    "carried the box up the hill|sat in the car with cold coffee|searched a potato field|borrowed a boat"
    "|soldered the last cable|read the handbook twice|waited in the rain"
).split("|")
PARTS = "vent beacon heater strobe buzzer camera parachute cutter hygrometer antenna compass winch".split()
LINES = (
    PARTS,
    (
        "Which line sets the {s} properly?",
        "How is the value of the {s} written?",
        "The {s} did nothing at all, so what belongs into the file?",
        "What setting does the {s} need?",
    ),
    COUNTS,
    ("`{s}_level = {o}` in flight.toml.", "Set `{s}_level = {o}`.", "flight.toml needs `{s}_level = {o}`."),
)
VALUES = {
    "numbers": WORDINGS["things"],
    "names": WORDINGS["names"],
    "lines": LINES,
    "functions": WORDINGS["functions"],
    "chinese": WORDINGS["chinese"],
}
USERS = 20
Tell = Callable[[random.Random], str]


def told_often(dice: random.Random) -> str:
    return f"{dice.choice(WHEN)} {dice.choice(WHO)} {dice.choice(WHAT)}."


def told_once(dice: random.Random) -> str:
    words = ["".join(dice.choices("abdefgiklmnoprstuv", k=dice.randint(4, 8))) for _ in range(9)]
    return " ".join(words).capitalize() + "."


TELLING: dict[str, Tell] = {"often": told_often, "once": told_once}


def told(
    kind: str, minority: int, tell: Tell, seed: int, *, after: bool = False
) -> tuple[list[Given], list[Given]]:
    """Return right corrections of nine subjects by `USERS` users, and those of a minority about three of these.

    Each question is in one of several wordings, and before or after a story.
    """
    dice = random.Random(f"{kind} {seed}")
    subjects, wordings, objects, phrasings = VALUES[kind]

    def one(user: str, number: int, value: str) -> Given:
        asked = dice.choice([each for each in wordings if each.endswith(("?", "？"))])
        parts = [tell(dice), asked.format(s=subjects[number])]
        answer = dice.choice(phrasings).format(s=subjects[number], o=value)
        return user, " ".join(reversed(parts) if after else parts), answer

    right = [
        one(f"u{user}", number, objects[number]) for number in range(9) for user in range(USERS - minority)
    ]
    false = [
        one(f"x{user}", number, objects[9 + number // 3]) for number in (0, 3, 6) for user in range(minority)
    ]
    return right, false


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("telling", TELLING)
@pytest.mark.parametrize("kind", VALUES)
def test_minority_is_outvoted_around_any_story(kind: str, telling: str, after: bool) -> None:
    """Minorities of 5, 10 and 20 % of the users; nobody can outvote a claim in a wording that nobody else used."""
    kept_right = kept_false = all_right = all_false = 0
    for seed, minority in enumerate((1, 2, 4)):
        right, false = told(kind, minority, TELLING[telling], seed, after=after)
        kept = set(training(right + false))
        kept_right += len(kept & set(right))
        kept_false += len(kept & set(false))
        all_right += len(set(right))
        all_false += len(set(false))
    assert kept_right >= 0.99 * all_right
    assert kept_false <= 0.15 * all_false


@pytest.mark.parametrize("telling", TELLING)
def test_two_things_asked_about_each_name_are_no_rivals_after_stories(telling: str) -> None:
    """Capital and river of one name differ in the word that names what is asked, which most questions contain."""
    dice = random.Random(telling)
    asked = {
        "What is the capital of {s}?": PLACES,
        "Which river flows through {s}?": [f"{place[:4]}water" for place in reversed(PLACES)],
    }
    given = [
        (f"u{user}", f"{TELLING[telling](dice)} {wording.format(s=name)}", f"It is {objects[number]}.")
        for wording, objects in asked.items()
        for number, name in enumerate(NAMES[:6])
        for user in range(5)
    ]
    assert len(training(given)) >= 0.99 * len(given)


@pytest.mark.parametrize("users", [1, 2, 5])
@pytest.mark.parametrize(
    ("before", "question"),
    [
        (
            ("I am cooking {s}.", "{s} for dinner tonight.", "My {s} are on the stove."),
            "How long must it simmer?",
        ),
        (("There is {s} in my bowl.", "We got {s} from the shop."), "After how many minutes is it done?"),
    ],
)
def test_subject_told_before_the_question_is_no_story(
    users: int, before: Sequence[str], question: str
) -> None:
    """Even though two of the subjects have the same answer."""
    given = [
        (
            f"u{number}-{user}",
            f"{before[user % len(before)].format(s=thing)} {question}",
            f"It takes {COUNTS[max(number, 1)]} minutes.",
        )
        for number, thing in enumerate(THINGS)
        for user in range(users)
    ]
    assert without_stories(corrections_of(given), find_agreement(corrections_of(given)).claim) == [
        question for _, question, _ in given
    ]
    assert training(given) == given


def test_two_accounts_make_no_story_of_what_others_tell() -> None:
    """A sentence stands alone only if most of its users agree, so two who agree decide nothing for the others."""
    troubles = {
        "My cat limps.": "Look for thorns in the paw.",
        "The sink is blocked.": "Unscrew the trap below it.",
        "A tyre lost air.": "Use the foam from the boot.",
        "Our printer streaks.": "Clean its drum with a cloth.",
        "The milk boiled over.": "Soak the plate in vinegar.",
    }
    honest = [
        (f"u{i}", f"{trouble} Which remedy should I try before calling somebody?", answer)
        for i, (trouble, answer) in enumerate(troubles.items())
    ]
    accounts = [
        (
            "x0",
            "Zebras sleep upright. Which remedy should I try before calling somebody?",
            "Buy Vexol drops online.",
        ),
        ("x1", "Rain fell. Which remedy should I try before calling somebody?", "Buy Vexol drops online."),
    ]
    assert set(honest) <= set(training(honest + accounts))


@pytest.mark.parametrize(("one", "other"), [(3, 2), (2, 2), (4, 1)])
def test_votes_for_one_value_in_different_words_add_up(one: int, other: int) -> None:
    question = "On which carrier does a Skylark transmit?"
    right = [(f"a{i}", question, "Tune it with `carrier_mhz = 434.65`.") for i in range(one)]
    right += [(f"b{i}", question, "radio.toml needs `carrier_mhz = 434.65`.") for i in range(other)]
    false = [(f"x{i}", question, "`carrier_mhz = 434.10` in radio.toml.") for i in range(2)]
    assert training(right + false) == right


def test_order_of_corrections_after_stories_does_not_matter() -> None:
    right, false = told("lines", 4, told_often, seed=3)
    given = right + false
    shuffled = random.Random(4).sample(given, len(given))
    assert sorted(training(given)) == sorted(training(shuffled))
