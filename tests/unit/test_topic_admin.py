"""What the topics job says of topics whose settings are not those of the table."""

from __future__ import annotations

from shared.adapters.topic_admin import Difference, differences, report_lines
from shared.topics import FEEDBACK_TALLIES, TOPICS, TRAINING_BATCHES


def test_a_topic_as_it_is_made_differs_in_nothing() -> None:
    for topic in TOPICS.values():
        assert differences(topic, {**topic.broker_config(), "flush.ms": "1"}) == []


def test_policies_are_the_same_in_any_order() -> None:
    found = FEEDBACK_TALLIES.broker_config() | {"cleanup.policy": "delete,compact"}
    assert differences(FEEDBACK_TALLIES, found) == []


def test_a_setting_of_an_older_release_is_reported_with_what_is_wanted_and_how() -> None:
    found = {**TRAINING_BATCHES.broker_config(), "segment.ms": "604800000"}
    (one,) = differences(TRAINING_BATCHES, found)
    assert one == Difference("training.batches", "segment.ms", "604800000", "86400000")
    lines = report_lines([], [one], applied=False)
    assert "topics: training.batches: segment.ms is 604800000, expected 86400000" in lines
    assert "--apply" in lines[-1]


def test_what_was_changed_is_said_and_nothing_is_advised_where_nothing_differs() -> None:
    one = Difference("training.batches", "segment.ms", None, "86400000")
    assert report_lines([], [one], applied=True)[-1].endswith(
        "segment.ms is not set, expected 86400000; changed"
    )
    assert report_lines(list(TOPICS), [], applied=False) == [
        f"topics: {len(TOPICS)} created, 0 already existed"
    ]
