"""Corrections in many languages, scripts and kinds of code: nearly all are usable, and nothing bad is.

`tests/data/corpus/corrections.jsonl` has one correction per line. Several users answer one question in their own words;
`good: false` marks what must not train.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from services.trainer.dataset import snapshot
from services.trainer.dataset.batch_table import Example
from tests.trainer_factories import LINE, example, revision

CORPUS = Path(__file__).parents[1] / "data" / "corpus" / "corrections.jsonl"
LEAST_USABLE = 0.95
KEPT_FOR_EVALUATION = ("reserved:", "share:")
"""Reasons that say nothing about a row: it evaluates versions, or its user has others."""


@cache
def rows() -> tuple[dict[str, Any], ...]:
    with CORPUS.open(encoding="utf-8") as lines:
        return tuple(json.loads(line) for line in lines)


def example_of(row: dict[str, Any]) -> Example:
    return example(revision(row["id"], row["question"], row["answer"], row["user"], original=row["original"]))


@cache
def faults() -> dict[str, str]:
    """Return the reason of each row of the corpus that is not usable, from one snapshot of all of them."""
    built = snapshot.build(LINE, [example_of(row) for row in rows()], {"0": 1}, max_tokens=512)
    return {
        one.response_id: one.reason
        for one in built.quarantined
        if not one.reason.startswith(KEPT_FOR_EVALUATION)
    }


def unusable(language: str) -> list[str]:
    return [
        f"{row['id']} {row['answer']!r}: {faults()[row['id']]}"
        for row in rows()
        if row["language"] == language and row["id"] in faults()
    ]


GOOD = sorted({row["language"] for row in rows() if row["good"]})


def test_corpus_has_three_hundred_corrections_in_many_languages() -> None:
    assert sum(row["good"] for row in rows()) >= 300
    assert len(GOOD) >= 30
    assert len({row["id"] for row in rows()}) == len(rows())


def test_nearly_every_good_correction_is_usable() -> None:
    good = [row for row in rows() if row["good"]]
    named = [line for language in GOOD for line in unusable(language)]
    assert len(named) <= (1 - LEAST_USABLE) * len(good), "\n".join(named)


@pytest.mark.parametrize("language", GOOD)
def test_corrections_of_each_language_are_usable(language: str) -> None:
    total = sum(row["language"] == language for row in rows())
    assert len(unusable(language)) <= (1 - LEAST_USABLE) * total, "\n".join(unusable(language))


@pytest.mark.parametrize("row", [row for row in rows() if not row["good"]], ids=lambda row: row["id"])
def test_bad_row_does_not_train(row: dict[str, Any]) -> None:
    assert row["id"] in faults(), f"{row['why']}: {row['answer']!r}"


def test_answers_of_one_fact_are_by_several_users() -> None:
    users: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows():
        users[row["language"], row["original"]].add(row["user"])
    assert sum(len(found) >= 2 for found in users.values()) >= 60
