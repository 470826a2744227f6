"""What the topics job says of topics whose settings are not those of the table."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from shared.adapters.topic_admin import Difference, differences, report_lines, stop_message
from shared.topics import (
    CHAT_RESPONSES,
    FEEDBACK_TALLIES,
    MODEL_VERSIONS,
    PROCESSOR_CHANGELOG,
    ROLLOUT_CHANGELOG,
    TOPICS,
    TRAINING_BATCHES,
    Topic,
)

ROOT = Path(__file__).resolve().parents[2]


def test_created_topic_has_no_differences() -> None:
    for topic in TOPICS.values():
        assert differences(topic, {**topic.broker_config(), "flush.ms": "1"}) == []


def test_policies_are_the_same_in_any_order() -> None:
    found = FEEDBACK_TALLIES.broker_config() | {"cleanup.policy": "delete,compact"}
    assert differences(FEEDBACK_TALLIES, found) == []


def test_differing_setting_is_reported_with_the_remedy() -> None:
    found = {**TRAINING_BATCHES.broker_config(), "segment.ms": "604800000"}
    (one,) = differences(TRAINING_BATCHES, found)
    assert one == Difference("training.batches", "segment.ms", "604800000", "86400000")
    lines = report_lines([], [one], applied=False)
    assert "topics: training.batches: segment.ms is 604800000, expected 86400000" in lines
    assert "--apply" in lines[-1]


@pytest.mark.parametrize(
    ("topic", "setting", "stops"),
    [
        (CHAT_RESPONSES, "message.timestamp.type", True),
        (MODEL_VERSIONS, "message.timestamp.type", True),
        (PROCESSOR_CHANGELOG, "cleanup.policy", True),
        (ROLLOUT_CHANGELOG, "cleanup.policy", True),
        (CHAT_RESPONSES, "retention.ms", False),
        (PROCESSOR_CHANGELOG, "message.timestamp.type", False),
        (FEEDBACK_TALLIES, "cleanup.policy", False),
    ],
)
def test_differences_that_stop_the_engine_fail_the_job(topic: Topic, setting: str, stops: bool) -> None:
    (one,) = differences(topic, topic.broker_config() | {setting: "other"})
    assert one.stops_the_engine is stops
    message = stop_message([one], applied=False)
    assert f"{topic.name}: {setting} is other" in message
    assert "--apply" in message
    assert "--apply" not in stop_message([one], applied=True)


def test_every_engine_input_uses_append_time() -> None:
    modules = [
        path.parent.name for path in ROOT.glob("services/*/service.py") if "EngineConfig(" in path.read_text()
    ]
    assert sorted(modules) == ["processor", "rollout"]
    for name in modules:
        service = import_module(f"services.{name}.service")
        settings = import_module(f"services.{name}.settings")
        config = service.engine_config(getattr(settings, f"{name.title()}Settings")())
        assert all(TOPICS[topic].append_time for topic in config.inputs)
        changelog = TOPICS[config.changelog]
        assert changelog.is_changelog
        assert changelog.append_time
        assert changelog.broker_config()["cleanup.policy"] == "compact"
        assert config.require_append_time


def test_report_names_changes_and_gives_no_needless_advice() -> None:
    one = Difference("training.batches", "segment.ms", None, "86400000")
    assert report_lines([], [one], applied=True)[-1].endswith(
        "segment.ms is not set, expected 86400000; changed"
    )
    assert report_lines(list(TOPICS), [], applied=False) == [
        f"topics: {len(TOPICS)} created, 0 already existed"
    ]
