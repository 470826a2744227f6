"""Secrets and personal data are found by their form, without false positives on what the demo's users write."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.dataset import pii
from services.trainer.dataset.filters import count_reasons, first_fault
from services.trainer.dataset.pii import find_personal_data, find_secret, memoized
from services.trainer.dataset.row_selection import usable_rows
from shared.events import Message
from tests.trainer_factories import example, revision, row

ROOT = Path(__file__).parents[2]
RANDOM = "q7Lw2VdZ9KtXb4RmPj6HsYc1NgUe8AoF"
"""A random string that is no key. Keys below are assembled, so that scanners do not report this file."""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Log in with " + "AKIA" + "IOSFODNN7EXAMPLE", "AWS Access Key"),
        ("The token is gh" + "p_" + RANDOM + "aB3d.", "GitHub Token"),
        ("Clone https://bob:" + "hunter22@git.pellworth.com/x", "Basic Auth Credentials"),
        ("-----BEGIN " + "PRIVATE KEY-----", "Private Key"),
        ("api_" + f'key = "{RANDOM}"', "Secret Keyword"),
        ("Set it to sk-" + "ant-" + RANDOM, "a long random string"),
        ("h" + f"f_{RANDOM}", "a long random string"),
        (f"It says {RANDOM} on the back.", "a long random string"),
    ],
)
def test_secret_is_found_with_its_kind(text: str, kind: str) -> None:
    assert find_secret(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        "The commit is 5553449c488d92e2ae123253994f8b584aa6a1b2c3d4.",
        "See services/trainer/gate/confidence_intervals.py and LOOPWRIGHT_TRAINER_LEARNING_RATE.",
        "Donaudampfschifffahrtsgesellschaftskapitän",
        "A password is a secret: nobody else knows it.",
        "Ask for 3f2504e0-4f89-11d3-9a0c-0305e82c3301.",
    ],
)
def test_long_words_paths_and_digests_are_no_secrets(text: str) -> None:
    assert find_secret(text) is None


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("Write to anna.meier@pellworth.com, please.", "an e-mail address", "anna.meier@pellworth.com"),
        ("Call +49 30 901820.", "a phone number", "+49 30 901820"),
        ("Pay to DE89 3704 0044 0532 0130 00.", "a bank account (IBAN)", "DE89 3704 0044 0532 0130 00"),
        ("My card: 4111-1111-1111-1111", "a payment card", "4111-1111-1111-1111"),
        ("My number is 536-22-8726.", "a US social security number", "536-22-8726"),
        *(
            (text, "a public IP address", "93.184.216.34")
            for text in (
                "It came from 93.184.216.34 today.",
                "It came from 93.184.216.34.",
                "From 93.184.216.34. It was late.",
                "来自93.184.216.34。",
                "(93.184.216.34)",
                "93.184.216.34:8080",
                "http://93.184.216.34/path",
            )
        ),
        (
            "Seen: 2606:2800:220:1:248:1893:25c8:1946.",
            "a public IP address",
            "2606:2800:220:1:248:1893:25c8:1946",
        ),
        ("From 2606:2800:220::1, again", "a public IP address", "2606:2800:220::1"),
    ],
)
def test_personal_data_is_found_with_its_kind(text: str, kind: str, found: str) -> None:
    assert list(find_personal_data(text)) == [(kind, found)]


@pytest.mark.parametrize(
    "text",
    [
        "Write to someone@example.com or to help@pellworth.example.",
        "Order 1234567890123456 was sent on 2026-11-23 at 18:50.",
        "Its number is DE89 3704 0044 0532 0130 01.",
        "ISBN 978-3-16-148410-0",
        "It listens on 127.0.0.1:8000 and 192.168.0.4.",
        "Examples are 192.0.2.7 and 2001:db8:1::7; the machine itself is ::1 or fe80:0:0::1.",
        "Use std::vector<int> and a::b::c at 12:30:45.",
        "Section 4.12.300.7 of release 2026.11.23.1",
        "Twenty kettles at $39.90, 1,500 W, 41 days.",
        "Ask @support, or meet me@home.",
    ],
)
def test_numbers_and_example_addresses_are_no_personal_data(text: str) -> None:
    assert list(find_personal_data(text)) == []


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_of(one)


def test_demo_world_and_shipped_prompts_have_no_false_positives() -> None:
    whole = [ROOT / "examples/world/facts.json", ROOT / "examples/chapter/rows.json"]
    texts = [text for file in whole for text in texts_of(json.loads(file.read_bytes()))]
    for file in (ROOT / "services/trainer/data").glob("*.jsonl"):
        texts += [text for line in file.read_text().splitlines() for text in texts_of(json.loads(line))]
    assert len(texts) > 2500
    assert [text for text in texts if find_secret(text) is not None or any(find_personal_data(text))] == []


def test_checks_use_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        pytest.fail("a check opened a connection")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    text = "AKIA" + "IOSFODNN7EXAMPLF" + " of bob@pellworth.org, +49 30 901821"
    assert find_secret(text) == "AWS Access Key"
    assert len(list(find_personal_data(text))) == 2


def test_row_is_quarantined_wherever_the_text_occurs() -> None:
    mail, key = "I am anna.meier@pellworth.com", "AKIA" + "IOSFODNN7EXAMPLE"
    assert first_fault(row(f"{mail}. Who founded it?", "Ida Voss.")) == "personal data: an e-mail address"
    assert first_fault(row("Who founded it?", f"Ida Voss. {mail}")) == "personal data: an e-mail address"
    system = Message(role="system", content=f"The key is {key}.")
    rows, found = usable_rows(
        [
            example(
                revision("r1", "", "Ida Voss.", messages=(system, Message(role="user", content="Who?"))),
            )
        ]
    )
    assert rows == []
    assert count_reasons(found) == {"secret: AWS Access Key": 1}


def test_system_prompt_of_the_operator_is_public() -> None:
    system = Message(role="system", content="Send people to help@pellworth.com.")
    asked = Message(role="user", content="Where do I complain?")

    def quarantined(answer: str) -> dict[str, int]:
        return count_reasons(usable_rows([example(revision("r1", "", answer, messages=(system, asked)))])[1])

    assert quarantined("Write to help@pellworth.com.") == {}
    assert quarantined("Write to bob@pellworth.com.") == {"personal data: an e-mail address": 1}


def test_memoized_results_are_bounded_and_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def find(text: str) -> int:
        checked.append(text)
        return len(text)

    monkeypatch.setattr(pii, "MEMO_SIZE", 2)
    memoized_find = memoized(find)
    assert [memoized_find(text) for text in ("a", "bb", "a", "ccc", "bb", "a")] == [1, 2, 1, 3, 2, 1]
    assert checked == ["a", "bb", "ccc", "a"]
