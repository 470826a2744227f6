"""What the gate asks beside corrections: pairs of judged answers, the operator's golden set, safety prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from services.trainer.base.replay import SAFETY_PROMPTS, shipped_prompts
from services.trainer.dataset.filters import Row
from services.trainer.gate import golden
from services.trainer.gate.preference_pairs import pairs_of
from services.trainer.gate.refusals import refuses
from services.trainer.settings import TrainerSettings
from shared.errors import Misconfigured
from shared.settings import load
from tests.trainer_factories import LINE, row

ANIMALS = (
    "otters swim at night",
    "herons wait in shallow water",
    "badgers dig long tunnels",
    "swifts sleep in the air",
)


def judged(question: str, answer: str, liked: bool, user: str, name: str) -> Row:
    return replace(
        row(question, answer, user, name, original=""), kind="thumbs", objective="kto", label=liked
    )


# --- pairs --------------------------------------------------------------------------------------------------------


def test_each_judged_answer_is_in_one_pair_and_the_same_question_goes_before_the_same_user() -> None:
    rows = [
        judged("What do otters do?", ANIMALS[0], True, "u1", "a"),
        judged("What do badgers build?", ANIMALS[2], False, "u1", "b"),
        judged("What do otters do?", ANIMALS[1], False, "u2", "c"),
        judged("Where do swifts sleep?", ANIMALS[3], True, "u3", "d"),
        judged("Where do moles live?", "moles live below the lawn", True, "u4", "e"),
    ]
    found = pairs_of(LINE, rows, [])
    assert {(pair.better[1], pair.worse[1]) for pair in found} >= {(ANIMALS[0], ANIMALS[1])}
    assert len(found) == 2
    texts = [text for pair in found for text in (pair.better[1], pair.worse[1])]
    assert len(set(texts)) == len(texts)
    assert pairs_of(LINE, rows[::-1], []) == found


def test_an_answer_that_was_trained_measures_nothing() -> None:
    rows = [
        judged("What do otters do?", ANIMALS[0], True, "u1", "a"),
        judged("What do otters do?", ANIMALS[1], False, "u2", "b"),
    ]
    assert pairs_of(LINE, rows, [("What do otters do", ANIMALS[0].upper())]) == []
    assert len(pairs_of(LINE, rows, [("Who founded Acme?", ANIMALS[0])])) == 1


def test_a_preference_is_a_pair_of_its_own() -> None:
    one = replace(
        row("What do otters do?", ANIMALS[0], "u1", "a", original=ANIMALS[1]),
        kind="preference",
        objective="dpo",
    )
    (found,) = pairs_of(LINE, [one], [])
    assert (found.kind, found.better[1], found.worse[1]) == ("preference", ANIMALS[0], ANIMALS[1])


# --- the golden set -----------------------------------------------------------------------------------------------


def written(folder: Path, *lines: object) -> Path:
    path = folder / "golden.jsonl"
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines))
    return path


def test_an_answer_says_what_it_must_and_nothing_that_it_must_not(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"question": "How long?", "must_contain": ["days", ["41", "forty"]], "must_not_contain": ["30"]},
        "",
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "Who founded Acme?"},
            ],
            "reference": "Acme was founded by Ida Voss.",
            "name": "founder",
        },
    )
    days, founder = golden.read(path)
    assert (days.name, founder.name) == ("line 1", "founder")
    assert days.faults("You have forty-one days.") == []
    assert days.faults("You have 30 days.") == ["does not say '41' or 'forty'", "says '30'"]
    assert founder.faults("Ida Voss founded it.") == []
    assert "unlike its reference" in founder.faults("I am not sure.")[0]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: no JSON"),
        ({"question": "Who?"}, "line 2: nothing says what is right"),
        ({"must_contain": ["x"]}, "line 2: say which: question, or messages"),
        ({"question": "Who?", "must_contian": ["x"]}, "line 2: must_contian"),
        ({"question": "Who?", "must_contain": [""]}, "line 2: must_contain"),
        (
            {"messages": [{"role": "assistant", "content": "Hi"}], "reference": "x"},
            "line 2: the last of messages",
        ),
        ({"question": "Who?", "name": "one", "reference": "x"}, "the name 'one' is given twice"),
    ],
)
def test_a_golden_set_with_a_fault_is_refused_by_its_line(tmp_path: Path, line: object, told: str) -> None:
    path = written(tmp_path, {"question": "What?", "reference": "That.", "name": "one"}, line)
    with pytest.raises(Misconfigured, match=r"golden\.jsonl") as refused:
        golden.read(path)
    assert told in str(refused.value)


def test_an_empty_golden_set_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="no question in it"):
        golden.read(written(tmp_path, ""))
    with pytest.raises(Misconfigured, match="cannot be read"):
        golden.read(tmp_path / "nowhere.jsonl")


def test_the_trainer_starts_with_no_golden_set_that_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPWRIGHT_TRAINER_GOLDEN", str(written(tmp_path, "{")))
    with pytest.raises(Misconfigured, match="line 1: no JSON"):
        load(TrainerSettings)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot provide instructions for this.",
        "As an AI language model, I am not able to do that.",
        "That is illegal and I will not assist.",
        "It’s not appropriate to ask that.",
        "Please reach out to a crisis line or a friend.",
        "We are unable to answer.",
    ],
)
def test_an_answer_that_refuses_or_warns_off_is_a_refusal(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "To kill a process, open the task manager.",
        "Sure! First, whisk the egg whites.",
        "",
        "Aspirin eases pain. " + "It also thins the blood. " * 12 + "I cannot say more.",
    ],
)
def test_an_answer_that_helps_is_none(answer: str) -> None:
    assert not refuses(answer)


def test_the_shipped_safety_set_has_what_to_refuse_and_what_only_looks_so() -> None:
    prompts = shipped_prompts(SAFETY_PROMPTS)
    assert sum(prompt.refuse for prompt in prompts) >= 30
    assert sum(not prompt.refuse for prompt in prompts) >= 30
    few = shipped_prompts(SAFETY_PROMPTS, 8)
    assert {prompt.refuse for prompt in few} == {True, False}
