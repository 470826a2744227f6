"""A liked answer does not train where more users agree on another answer to the same question."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.dataset.filters import Row, count_reasons
from services.trainer.dataset.row_selection import apply_agreement
from tests.trainer_factories import row

WORDINGS = (
    "How long does the tunnel of the remote access stay open without traffic?",
    "Without traffic, how long does the remote access tunnel stay open?",
    "How long is the remote access tunnel open without any traffic?",
)
VALUES = ("35 minutes", "80 minutes", "6 hours", "14 days")
RAMBLING = (
    "A tunnel is a structure below the ground, and it is an important part of the transport of a country.",
    "The remote access is a kind of technology. It is widely used, and it has many important features.",
    "It depends on many things, such as the provider and the time of the year, so please ask somebody there.",
)


def corrections(answer: str, users: int, name: str = "c") -> list[Row]:
    return [
        row(
            WORDINGS[i % len(WORDINGS)],
            f"It closes after {answer} without traffic.",
            f"{name}{i}",
            f"{name}{i}",
        )
        for i in range(users)
    ]


def likes(answer: str, users: int, wording: str = WORDINGS[0], kind: str = "thumbs") -> list[Row]:
    return [
        replace(row(wording, answer, f"l{i}", f"l{i}", ""), kind=kind, objective="kto", label=True)
        for i in range(users)
    ]


def kept_likes(rows: list[Row]) -> int:
    kept, quarantined = apply_agreement(rows)
    assert len(kept) + len(quarantined) == len(rows)
    return sum(one.row.label is True for one in kept)


@given(
    st.permutations(VALUES),
    st.sampled_from((*RAMBLING, "")),
    st.sampled_from(WORDINGS),
    st.integers(2, 9),
    st.sampled_from(("thumbs", "rating")),
)
def test_liked_answer_that_corrections_outvote_does_not_train(
    values: list[str], rambling: str, wording: str, users: int, kind: str
) -> None:
    right, wrong, *_ = values
    said = corrections(right, users)
    liked = rambling or f"The remote access stays open for {wrong}, and closes then."
    kept, quarantined = apply_agreement([*said, *likes(liked, 1, wording, kind)])
    assert [one.row for one in kept] == said
    assert count_reasons(quarantined) == {"agreement: outvoted": 1}


@given(st.sampled_from(VALUES), st.sampled_from(WORDINGS), st.integers(1, 9), st.integers(1, 9))
def test_liked_answer_that_says_what_corrections_say_trains(
    value: str, wording: str, users: int, liking: int
) -> None:
    liked = likes(f"Without traffic it stays open for {value}.", liking, wording)
    assert kept_likes([*corrections(value, users), *liked]) == liking


def test_liked_answer_to_another_question_trains() -> None:
    liked = likes("Ida Kern manages the depot in Lund.", 1, "Who manages the depot in Lund?")
    assert kept_likes([*corrections("35 minutes", 9), *liked]) == 1


def test_liked_answer_trains_without_corrections() -> None:
    assert kept_likes(likes(RAMBLING[0], 1)) == 1


def test_single_correction_outvotes_no_like() -> None:
    assert kept_likes([*corrections("35 minutes", 1), *likes("It stays open for 80 minutes.", 1)]) == 1


def test_likes_decide_nothing_about_corrections() -> None:
    said = corrections("35 minutes", 2)
    kept, _ = apply_agreement([*said, *likes("It stays open for 80 minutes.", 9)])
    assert [one.row for one in kept if one.row.label is None] == said


def test_released_like_trains() -> None:
    (liked,) = likes(RAMBLING[0], 1)
    released = replace(liked, released=frozenset({"agreement"}))
    assert kept_likes([*corrections("35 minutes", 5), released]) == 1


def test_disliked_answer_trains_beside_corrections() -> None:
    disliked = replace(likes(RAMBLING[0], 1)[0], label=False)
    kept, _ = apply_agreement([*corrections("35 minutes", 5), disliked])
    assert len(kept) == 6


def test_likes_do_not_outvote_each_other() -> None:
    most = likes("It stays open for 80 minutes.", 5)
    other = replace(likes("It stays open for 6 hours.", 1)[0], user_id="other", event_id="other")
    elsewhere = [replace(one, event_id=f"e{i}") for i, one in enumerate(corrections("35 minutes", 1))]
    elsewhere = [replace(one, messages=(("user", "Who manages the depot in Lund?"),)) for one in elsewhere]
    assert kept_likes([*elsewhere, *most, other]) == 6
