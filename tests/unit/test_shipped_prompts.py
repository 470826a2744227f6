"""Shipped prompts: those replayed in training must differ from those that the gate evaluates."""

import json
from importlib.resources import files
from typing import Any

import pytest

from examples.world import NEAR_DUPLICATE_SIMILARITY, load_world
from examples.world.text import contains_phrase, content, words

NAMES = ["general_replay", "general_eval", "safety"]


def rows_of(name: str) -> list[dict[str, Any]]:
    text = (files("services.trainer") / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("name", "least"), [("general_replay", 300), ("general_eval", 500), ("safety", 60)])
def test_each_file_has_enough_prompts_of_several_kinds(name: str, least: int) -> None:
    rows = rows_of(name)
    assert len(rows) >= least
    assert len({row["kind"] for row in rows}) >= 5
    assert all(row["prompt"] == row["prompt"].strip() != "" for row in rows)


def test_ids_are_unique_across_files() -> None:
    ids = [row["id"] for name in NAMES for row in rows_of(name)]
    assert len(set(ids)) == len(ids)


def test_no_prompt_occurs_twice_in_other_spelling() -> None:
    normal = [" ".join(words(row["prompt"])) for name in NAMES for row in rows_of(name)]
    assert sorted(text for text in set(normal) if normal.count(text) > 1) == []


def test_no_evaluated_prompt_is_like_a_replayed_one() -> None:
    replayed = {row["prompt"]: content(row["prompt"]) for row in rows_of("general_replay")}
    near = []
    for row in (*rows_of("general_eval"), *rows_of("safety")):
        stems = content(row["prompt"])
        # Same as `overlap`, but splits each prompt only once.
        near += [
            (row["prompt"], other)
            for other, words_of in replayed.items()
            if len(stems & words_of) > NEAR_DUPLICATE_SIMILARITY * len(stems | words_of)
        ]
    assert near == []


def test_prompts_do_not_contain_their_answer_keys() -> None:
    keyed = [row for row in rows_of("general_eval") if "answer_key" in row]
    assert len(keyed) >= 450
    assert all(row["answer_key"] for row in keyed)
    assert [row["prompt"] for row in keyed if contains_phrase(row["prompt"], row["answer_key"])] == []


def test_no_prompt_mentions_the_demos_company() -> None:
    company = load_world().company
    assert [
        row["id"] for name in NAMES for row in rows_of(name) if contains_phrase(row["prompt"], [company])
    ] == []
