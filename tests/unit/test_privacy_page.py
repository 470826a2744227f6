"""`docs/privacy.md` says what the code does: each topic with its retention, the deadline, the settings behind it."""

from __future__ import annotations

import re
from pathlib import Path

from loopwright.base_urls import API_KEY_VARIABLE
from shared.topics import (
    COMPACTED,
    DAY_MS,
    ERASED_WITHIN_DAYS,
    INPUT_DAYS,
    SEGMENTS,
    TOPICS,
    WINDOW_DAYS,
    Topic,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
USER_TEXT = {"chat.responses", "feedback.events", "processor.changelog", "training.batches", "dead.letters"}


def kept(topic: Topic) -> str:
    days = "forever" if topic.keep_days is None else f"{topic.keep_days} days"
    return f"{days}, compacted" if topic.compact else days


def rows() -> dict[str, tuple[str, str]]:
    """Topic -> (how long it is kept, what it holds of users), as the page has it."""
    found = re.findall(r"^\| `([a-z]+\.[a-z]+)` \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    return {name: (how_long, what) for name, how_long, what in found}


def test_every_topic_is_named_with_its_retention() -> None:
    assert {name: how_long for name, (how_long, _) in rows().items()} == {
        name: kept(topic) for name, topic in TOPICS.items()
    }


def test_user_text_is_in_no_topic_beyond_the_deadline() -> None:
    for name in USER_TEXT:
        topic = TOPICS[name]
        if topic.compact:
            assert COMPACTED.items() <= topic.config.items(), name
        else:
            assert topic.keep_days is not None
            assert SEGMENTS.items() <= topic.config.items(), name
            assert topic.keep_days + int(SEGMENTS["segment.ms"]) // DAY_MS < ERASED_WITHIN_DAYS, name


def test_deadline_is_the_sum_of_its_parts() -> None:
    assert f"### The deadline: {ERASED_WITHIN_DAYS} days" in PAGE
    parts = [int(days) for days in re.findall(r"^\| [^|]+ \| (?:up to )?(\d+) \|$", PAGE, re.MULTILINE)]
    assert parts[0] == INPUT_DAYS
    assert sum(parts) == ERASED_WITHIN_DAYS
    assert f"the {WINDOW_DAYS} days of the window" in PAGE


def test_the_key_and_the_settings_are_named_as_they_are() -> None:
    assert API_KEY_VARIABLE in PAGE
    assert "python -m shared.adapters.topic_admin" in PAGE
    for name, value in COMPACTED.items():
        assert name in PAGE
        assert int(value) == DAY_MS, "the page says that it is a day"
