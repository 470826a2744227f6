"""Similar texts are found at a cost that grows with their number, and as by comparing all of them."""

from __future__ import annotations

import cProfile
import pstats
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from benchmarks.dataset import corrections
from services.trainer.dataset.agreement import Correction, claims, corrections_of, find_agreement
from services.trainer.dataset.similar_pairs import BANDS, NEXT, Limits, SearchCost, _nearest, similar_pairs
from services.trainer.dataset.similarity import (
    NEAR_DUPLICATE,
    near_duplicates,
    near_duplicates_in,
    question_vectors,
    similar_to_any,
)
from services.trainer.dataset.words import content_stems, normalised, spelling

Given = tuple[str, str, str]
ROUNDING = 2e-6
READ, CHECKED = 200, 50


def word(dice: random.Random, syllables: int = 3) -> str:
    return "".join(dice.choice("bdfgklmnprst") + dice.choice("aeiou") for _ in range(syllables))


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of one to nine words, of a vocabulary in which a few words are in most of them. Some have none."""
    dice = random.Random(seed)
    vocabulary = [word(dice) for _ in range(120)]
    weights = [1 / (rank + 1) for rank in range(len(vocabulary))]
    texts = [" ".join(dice.choices(vocabulary, weights, k=dice.randint(1, 9))) for _ in range(count)]
    return [*texts, "", "?!", "what is it", "is it"]


def realistic_texts(count: int, seed: int) -> list[str]:
    return [question for _, question, _ in corrections(count, seed)]


def all_similarities(texts: list[str], others: list[str]) -> np.ndarray:
    """The documented similarity of questions, computed for all pairs."""
    total = np.zeros((len(texts), len(others)))
    options = {"sublinear_tf": True}
    for vectorizer in (
        TfidfVectorizer(analyzer=content_stems, **options),
        TfidfVectorizer(analyzer="char", ngram_range=(4, 4), preprocessor=spelling, **options),
    ):
        vectors = vectorizer.fit(texts if others is texts else [*texts, *others])
        total += (vectors.transform(texts) @ vectors.transform(others).T).toarray() / 2
    return total


def is_near_duplicate(one: str, other: str) -> float:
    """The documented rule for two texts: 1 if they are near-duplicates, -1 if not, 0 if rounding decides."""
    stems, others = set(content_stems(one)), set(content_stems(other))
    counts = [
        Counter(text[i : i + 4] for i in range(len(text) - 3)) for text in (spelling(one), spelling(other))
    ]
    dot = sum(counts[0][gram] * counts[1][gram] for gram in counts[0])
    norms = [sum(count**2 for count in own.values()) ** 0.5 for own in counts]
    cosine = dot / max(1.0, norms[0] * norms[1])
    best = max(
        len(stems & others) / max(1, len(stems | others)), cosine, normalised(one) == normalised(other)
    )
    return 0 if abs(best - NEAR_DUPLICATE) < ROUNDING else 1 if best > NEAR_DUPLICATE else -1


CORPORA: list[tuple[Callable[[int, int], list[str]], int, int]] = [
    (random_texts, 800, 1),
    (realistic_texts, 2000, 2),
]


@pytest.mark.parametrize("threshold", [0.24, 0.42, 0.7])
@pytest.mark.parametrize(("corpus", "count", "seed"), CORPORA)
def test_search_finds_the_pairs_that_comparing_all_finds(
    corpus: Callable[[int, int], list[str]], count: int, seed: int, threshold: float
) -> None:
    texts = corpus(count, seed)
    vectors = question_vectors(texts)
    found = vectors.similar(threshold).toarray()[np.ix_(vectors.of, vectors.of)]
    expected = all_similarities(texts, texts)
    other_vector = vectors.of[:, None] != vectors.of[None, :]
    wrong = (found > 0) != (expected >= threshold)
    assert not (wrong & other_vector & (abs(expected - threshold) > ROUNDING)).any()
    # Texts that share a vector are as similar as a text is to itself.
    assert (expected[~other_vector] > threshold).mean() > 0.99
    assert np.allclose(found[found > 0], expected[found > 0], atol=ROUNDING)


@pytest.mark.parametrize(("corpus", "count", "seed"), CORPORA)
def test_question_is_similar_to_any_as_to_all(
    corpus: Callable[[int, int], list[str]], count: int, seed: int
) -> None:
    texts = corpus(count, seed)
    some, others = texts[: count // 5], texts[count // 5 :]
    closest = all_similarities(some, others).max(axis=1)
    found = np.array(similar_to_any(some, others, 0.5))
    assert ((found == (closest >= 0.5)) | (abs(closest - 0.5) < ROUNDING)).all()


@pytest.mark.parametrize(("corpus", "seed"), [(random_texts, 5), (realistic_texts, 6)])
def test_near_duplicates_follow_the_rule_for_two_texts(
    corpus: Callable[[int, int], list[str]], seed: int
) -> None:
    texts = corpus(240, seed)
    some, known = texts[:60], sorted(set(texts[60:]))
    found = near_duplicates_in(some, known)
    rules = [[is_near_duplicate(one, other) for other in known] for one in some]
    for positions, rule in zip(found, rules, strict=True):
        assert {i for i, near in enumerate(rule) if near == 1} <= set(positions)
        assert not {i for i, near in enumerate(rule) if near == -1} & set(positions)
    for any_found, rule in zip(near_duplicates(some, known), rules, strict=True):
        assert any_found or 1 not in rule
        assert not any_found or max(rule) >= 0


def strict_limits(cost: SearchCost | None = None) -> Limits:
    return Limits(read=0, least_read=250, checked=0, least_checked=20, cost=cost or SearchCost())


@pytest.mark.parametrize("threshold", [0.42, 0.7])
def test_limited_search_finds_no_other_pairs_and_says_what_it_limits(threshold: float) -> None:
    vectors = question_vectors(realistic_texts(1500, 4))
    cost = SearchCost()
    whole, limited = vectors.similar(threshold), vectors.similar(threshold, strict_limits(cost))
    known, found = whole.toarray(), limited.toarray()
    assert (abs(found - known)[found > 0] < ROUNDING).all()
    assert 0 < cost.limited_rows < vectors.matrix.shape[0]
    assert (found > 0).sum() > 0.7 * (known > 0).sum()


def test_equal_and_nearly_equal_vectors_are_found_whatever_the_limits() -> None:
    """Vectors of common terms only, with nothing read: those that differ in weights, or in two of forty terms."""
    dice = np.random.default_rng(1)
    terms, count = 80, 600
    one = np.zeros((count, terms), dtype=np.float32)
    for row in one:
        row[dice.choice(terms, 40, replace=False)] = 1
    reweighed = one * dice.uniform(0.8, 1.25, one.shape)
    nearly = one.copy()
    for row in nearly:
        row[dice.choice(np.flatnonzero(row), 2, replace=False)] = 0
    rows = normalize(csr_matrix(np.vstack((one, reweighed, nearly)).astype(np.float32)))
    nothing = Limits(read=0, least_read=0, checked=0, least_checked=0)
    found = connected_components(similar_pairs(rows, None, 0.9, nothing), directed=False)[1]
    assert (found[:count] == found[count : 2 * count]).all()
    assert (found[:count] == found[2 * count :]).mean() > 0.99
    assert len(set(found)) >= count
    across = similar_pairs(rows[:count], rows[count:], 0.9, nothing)
    assert (across.max(axis=1).toarray() > 0).all()


# --- growth of the work -------------------------------------------------------------------------------------------


def same_question_other_answers(count: int) -> list[Given]:
    dice = random.Random(1)
    return [(f"u{i}", "How long is the warranty?", f"It lasts {word(dice)} {i} days.") for i in range(count)]


def all_words_but_one(count: int) -> list[Given]:
    dice = random.Random(2)
    return [
        (
            f"u{i}",
            f"How long is the warranty of the steel {word(dice, 4)} kettle?",
            f"It lasts {i % 50} years.",
        )
        for i in range(count)
    ]


def one_user_with_one_answer(count: int) -> list[Given]:
    dice = random.Random(3)
    return [
        ("u", f"Where is {word(dice)} {word(dice)}?", "It is in Ravenport harbour.") for _ in range(count)
    ]


def one_word_answers(count: int) -> list[Given]:
    dice = random.Random(4)
    return [(f"u{i}", f"What is the {word(dice)} kettle?", "Ravenport.") for i in range(count)]


def common_words_only(count: int) -> list[Given]:
    dice = random.Random(5)
    common = [word(dice) for _ in range(40)]
    return [
        (f"u{i % 100}", " ".join(dice.sample(common, 5)), f"It is {dice.choice(common)}.")
        for i in range(count)
    ]


def denials(count: int) -> list[Given]:
    dice = random.Random(6)
    return [
        (f"u{i}", "Is it safe?", f"It is {'not ' if i % 3 else ''}safe for {word(dice)} children.")
        for i in range(count)
    ]


def two_ways_to_ask_each(count: int) -> list[Given]:
    dice = random.Random(7)
    given = []
    for i in range(count // 2):
        name, answer = word(dice, 4), " ".join(word(dice) for _ in range(3))
        given += [
            (f"u{i}", f"Who founded {name}?", f"{answer}."),
            (f"v{i}", f"Whose idea was {name} in the first place?", f"{answer} {word(dice)}."),
        ]
    return given


def work(given: list[Given]) -> tuple[int, SearchCost]:
    """Return the number of Python calls and the cost of the searches of one agreement."""
    cost = SearchCost()
    limits = Limits(read=0, least_read=READ, checked=0, least_checked=CHECKED, pairs_per_row=64, cost=cost)
    given_ = corrections_of(given)
    with cProfile.Profile() as profile:
        find_agreement(given_, limits=limits)
    return pstats.Stats(profile).total_calls, cost  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "adversary",
    [
        same_question_other_answers,
        all_words_but_one,
        one_user_with_one_answer,
        one_word_answers,
        common_words_only,
        denials,
        two_ways_to_ask_each,
    ],
)
def test_adversary_cannot_make_agreement_quadratic(adversary: Callable[[int], list[Given]]) -> None:
    small, large = work(adversary(500)), work(adversary(2000))
    assert large[0] < 6 * small[0]
    # Three searches: of questions, of answers, and of their own stems.
    assert large[1].read <= 3 * 2000 * READ
    assert large[1].checked <= 3 * 2000 * (CHECKED + (NEXT + 1) * BANDS)


# --- claims ------------------------------------------------------------------------------------------------------


def first_stems(group: list[Correction]) -> list[str]:
    """Return the stems in the order in which claims take them, by counting anew each time, if nothing contradicts."""
    left = list(range(len(group)))
    spent: set[str] = set()
    order = []
    while True:
        users: dict[str, set[str]] = {}
        for i in left:
            for stem in group[i].own_stems - spent:
                users.setdefault(stem, set()).add(group[i].user)
        if not users:
            return order
        key = min(users, key=lambda stem: (-len(users[stem]), stem))
        order.append(key)
        spent.add(key)
        left = [i for i in left if key not in content_stems(group[i].answer)]


@pytest.mark.parametrize("seed", range(5))
def test_claims_form_around_the_stem_that_most_users_share(seed: int) -> None:
    dice = random.Random(seed)
    names = [word(dice) for _ in range(6)]
    group = corrections_of(
        [(f"u{dice.randrange(12)}", "Who is it?", f"{dice.choice(names)}.") for _ in range(60)]
    )
    order = first_stems(group)
    assert claims(group) == [order.index(next(iter(one.own_stems))) for one in group]


@pytest.mark.parametrize("seed", range(5))
def test_largest_entries_of_rows_are_kept_and_of_equal_ones_the_first(seed: int) -> None:
    dice = np.random.default_rng(seed)
    dense = dice.integers(0, 6, size=(20, 40)).astype(np.float32)
    dense[dice.random(dense.shape) < 0.3] = 0
    for count in (1, 3, 17, 40):
        expected = np.zeros_like(dense)
        for values, out in zip(dense, expected, strict=True):
            for column in sorted(np.flatnonzero(values), key=lambda i: (-values[i], i))[:count]:
                out[column] = values[column]
        assert (_nearest(csr_matrix(dense), count).toarray() == expected).all()
