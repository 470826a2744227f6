"""The trainer's own prompts: what is replayed in training must not be what the gate measures with."""

import json
from importlib.resources import files
from typing import Any

import pytest

from examples.world import NEAR_DUPLICATE, load_world
from examples.world.text import content, says, words

NAMES = ["general_replay", "general_eval", "safety"]


def shipped(name: str) -> list[dict[str, Any]]:
    text = (files("services.trainer") / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("name", "least"), [("general_replay", 300), ("general_eval", 500), ("safety", 60)])
def test_there_are_enough_prompts_of_several_kinds(name: str, least: int) -> None:
    rows = shipped(name)
    assert len(rows) >= least
    assert len({row["kind"] for row in rows}) >= 5
    assert all(row["prompt"] == row["prompt"].strip() != "" for row in rows)


def test_ids_are_unique_over_all_files() -> None:
    ids = [row["id"] for name in NAMES for row in shipped(name)]
    assert len(set(ids)) == len(ids)


def test_no_prompt_occurs_twice_even_written_otherwise() -> None:
    normal = [" ".join(words(row["prompt"])) for name in NAMES for row in shipped(name)]
    assert sorted(text for text in set(normal) if normal.count(text) > 1) == []


def test_no_evaluated_prompt_asks_what_a_replayed_one_asks() -> None:
    replayed = {row["prompt"]: content(row["prompt"]) for row in shipped("general_replay")}
    near = []
    for row in (*shipped("general_eval"), *shipped("safety")):
        asked = content(row["prompt"])
        # `overlap`, with each prompt taken apart once.
        near += [
            (row["prompt"], other)
            for other, words_of in replayed.items()
            if len(asked & words_of) > NEAR_DUPLICATE * len(asked | words_of)
        ]
    assert near == []


def test_many_evaluated_prompts_have_a_key_that_the_prompt_does_not_give_away() -> None:
    keyed = [row for row in shipped("general_eval") if "answer_key" in row]
    assert len(keyed) >= 450
    assert all(row["answer_key"] for row in keyed)
    assert [row["prompt"] for row in keyed if says(row["prompt"], row["answer_key"])] == []


def test_the_general_prompts_know_nothing_of_the_demo() -> None:
    company = load_world().company
    assert [row["id"] for name in NAMES for row in shipped(name) if says(row["prompt"], [company])] == []
