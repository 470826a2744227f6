"""Tests of the topic settings with which the engine refuses to run."""

from __future__ import annotations

import pytest

from shared.stream.topic_checks import TopicDescription, setting_problems

GOOD_INPUT = {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete"}
GOOD_CHANGELOG = {"message.timestamp.type": "CreateTime", "cleanup.policy": "compact"}


def problems(a: dict[str, str] | None, changelog: dict[str, str] | None) -> list[str]:
    topics = {
        "a": TopicDescription("1", a),
        "b": TopicDescription("2", GOOD_INPUT),
        "c": TopicDescription("3", changelog),
    }
    return setting_problems(("a", "b"), "c", topics)


def test_shipped_settings_are_accepted() -> None:
    assert problems(GOOD_INPUT, GOOD_CHANGELOG) == []


def test_input_with_producers_timestamps_is_refused() -> None:
    (problem,) = problems({**GOOD_INPUT, "message.timestamp.type": "CreateTime"}, GOOD_CHANGELOG)
    assert problem == "a: message.timestamp.type is CreateTime, and must be LogAppendTime"


@pytest.mark.parametrize("policy", ["delete", "compact,delete", "delete,compact"])
def test_changelog_that_deletes_state_is_refused(policy: str) -> None:
    (problem,) = problems(GOOD_INPUT, {**GOOD_CHANGELOG, "cleanup.policy": policy})
    assert problem == f"c: cleanup.policy is {policy}, and must be compact"


def test_settings_that_may_not_be_read_are_not_judged() -> None:
    assert problems(None, None) == []
