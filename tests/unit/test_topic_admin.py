"""What the topics job says of topics whose settings are not those of the table."""

from __future__ import annotations

from shared.adapters.topic_admin import Difference, differences, report_lines
from shared.topics import FEEDBACK_TALLIES, TOPICS, TRAINING_BATCHES


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


def test_report_names_changes_and_gives_no_needless_advice() -> None:
    one = Difference("training.batches", "segment.ms", None, "86400000")
    assert report_lines([], [one], applied=True)[-1].endswith(
        "segment.ms is not set, expected 86400000; changed"
    )
    assert report_lines(list(TOPICS), [], applied=False) == [
        f"topics: {len(TOPICS)} created, 0 already existed"
    ]
