"""Rules that check answers without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.trainer.core.eval_size import SKILL_TOKENS
from services.trainer.gate.answer_rules import RULES
from services.trainer.gate.skill_sets import read_skill_set

ALL_RULES = [
    rule for name in SKILL_TOKENS for question in read_skill_set(name)[::7] for rule in question.rules
]


def holds(rule: dict[str, Any], answer: str) -> bool:
    (parsed,) = RULES.validate_python([rule])
    return parsed.holds(answer)


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        ({"rule": "contains", "any": ["São Paulo"]}, "It is Sao Paulo.", "It is Sao Paulinho."),
        ({"rule": "contains", "any": ["Москв*"]}, "Это в Москве.", "Это подмосковье."),
        ({"rule": "contains", "any": ["東京"]}, "答えは東京です。", "京都です。"),
        ({"rule": "contains", "any": ["cat"]}, "A cat.", "A catalogue."),
        ({"rule": "words", "at_least": 3, "at_most": 3}, "Well-known, don't you?", "Two words"),
        ({"rule": "words", "at_most": 5}, "short", ""),
        ({"rule": "sentences", "at_least": 2, "at_most": 2}, "Yes! It is.", "Yes, it is..."),
        ({"rule": "bullets", "at_least": 2, "at_most": 2}, "Here:\n- a\n* b", "1. a\n2. b"),
        ({"rule": "bullets", "at_least": 1, "numbered": True}, "1) a", "- a"),
        ({"rule": "items", "at_least": 2, "at_most": 2}, "a, b.", "a, , b"),
        ({"rule": "occurrences", "word": "sea", "at_least": 2}, "Sea, sea.", "Sea and seaside."),
        ({"rule": "starts", "text": "Dear"}, "Dear all", "dear all"),
        ({"rule": "ends", "text": "!"}, "Yes!", "!"),
        ({"rule": "no_letter", "letter": "e"}, "A cat", "A bEe"),
        ({"rule": "no_letter", "letter": "e"}, "A cat", "--"),
        ({"rule": "case", "case": "upper"}, "NO 1", "No 1"),
        ({"rule": "json", "keys": ["a"]}, 'Sure:\n```json\n{"a": 1}\n```', '{"a": 1, "b": 2}'),
        ({"rule": "json", "equals": {"a": True}}, '{"a": true}', '{"a": "true"}'),
        ({"rule": "language", "code": "de"}, "Das ist nicht so schwer.", "This is not so hard."),
        ({"rule": "language", "code": "ru"}, "Это по-русски (OK).", "This is russkij язык."),
        ({"rule": "literal", "value": "[1, 2]"}, "The output is [1,2].", "[1, 2, 3]"),
        ({"rule": "literal", "value": "1"}, "1", "True"),
        ({"rule": "literal", "value": "6"}, "It prints 6.", "It prints 16."),
        ({"rule": "code", "any": ["x = f('a')"]}, 'Use `x=f("a")`.', "x = f('b')"),
        ({"rule": "code", "any": ["a == b"]}, "if a == b:", "if a = b:"),
    ],
)
def test_rule_accepts_the_right_answer_only(rule: dict[str, Any], right: str, wrong: str) -> None:
    assert holds(rule, right)
    assert not holds(rule, wrong)


def test_function_is_judged_by_name_parameters_and_syntax() -> None:
    rule = {"rule": "function", "name": "f", "parameters": 1, "uses": ["For|While"], "avoids": ["sum"]}
    loop = "def f(xs):\n    t = 0\n    for x in xs:\n        t += x\n    return t"
    assert holds(rule, f"Here it is:\n```python\n{loop}\n```\nIt adds up.")
    assert holds(rule, f"Here it is:\n```python\n{loop}\n    retu"), "an answer may be cut"
    assert not holds(rule, loop.replace("f(xs)", "g(xs)"))
    assert not holds(rule, loop.replace("f(xs)", "f(xs, start)"))
    assert not holds(rule, "def f(xs):\n    return len(xs)")
    assert not holds(rule, loop + " + sum([])")


def test_code_of_an_answer_is_never_run(tmp_path: Path) -> None:
    file = tmp_path / "run"
    code = f"open({str(file)!r}, 'w').close()"
    answers = [
        code,
        f"```python\n{code}\n```",
        f"[{code}]",
        f"def double(n):\n    {code}\n    return 2 * n\n{code}",
    ]
    for answer in answers:
        for rule in ALL_RULES:
            rule.holds(answer)
    assert not file.exists()


@pytest.mark.parametrize(
    "answer",
    [
        "(" * 3000,
        "[" * 3000,
        "{" * 3000,
        "-" * 3000 + "1",
        "9" * 9000,
        "1.0" * 999 + "e",
        "x=" * 2000,
        "```\n\0",
        "\ud800",
    ],
    ids=range(9),
)
def test_hostile_answer_makes_no_rule_raise(answer: str) -> None:
    for rule in ALL_RULES:
        rule.holds(answer)


@settings(max_examples=30, deadline=None)
@given(st.text(st.sampled_from("abeß.,:;-*`'\"()[]{}=\\ \n1293.TruedfFor京あאм"), max_size=60))
def test_no_answer_makes_a_rule_raise(answer: str) -> None:
    for rule in ALL_RULES:
        rule.holds(answer)


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "words"},
        {"rule": "words", "at_least": 3, "at_most": 2},
        {"rule": "contains", "any": []},
        {"rule": "contains", "any": ["a"], "key": "b"},
        {"rule": "no_letter", "letter": "ab"},
        {"rule": "matches", "pattern": "("},
        {"rule": "json"},
        {"rule": "language", "code": "xx"},
        {"rule": "literal", "value": "open('x')"},
        {"rule": "code", "any": ["a = 1; b = 2"]},
        {"rule": "unknown"},
    ],
    ids=lambda rule: "-".join(map(str, rule.values())),
)
def test_rule_that_checks_nothing_is_invalid(rule: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, SyntaxError)):
        RULES.validate_python([rule])
