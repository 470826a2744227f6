"""Responses with tool calls: the processor carries them whole, and the trainer says why they do not train."""

from __future__ import annotations

from typing import Any

import pytest

from services.trainer.dataset.filters import first_fault
from services.trainer.dataset.signal_rows import TOOL_CALLS_NOT_TRAINED, rows_of
from shared.events import Batch, Choice, ExampleRevision, Message, ToolCall, ToolFunction
from shared.topics import TRAINING_BATCHES
from tests.trainer_factories import example
from tests.unit.processor_driver import ProcessorDriver, feedback, response

CALL = ToolCall(
    id="call_1", type="function", function=ToolFunction(name="look_up", arguments='{"kettle": "K2"}')
)
QUESTION = Message(role="user", content="How hot does the K2 get?")
ASKED = (
    QUESTION,
    Message(role="assistant", content="", tool_calls=(CALL,)),
    Message(role="tool", content="90", tool_call_id="call_1", name="look_up"),
)
CHOICES = (Choice(index=0, text="90 degrees."), Choice(index=1, text="", tool_calls=(CALL,)))


def joined(
    messages: tuple[Message, ...], choices: tuple[Choice, ...], *events: tuple[str, Any, int]
) -> ExampleRevision:
    """Return the example that the processor makes of a response and feedback on it."""
    driver = ProcessorDriver()
    driver.append(response(messages=messages, choices=choices))
    for number, (kind, value, choice) in enumerate(events):
        driver.append(feedback(kind, value, f"e{number}", user=f"u{number}", choice=choice), number)
    driver.tick(100)
    [batch] = [out for out in driver.outputs if out.topic == TRAINING_BATCHES.name]
    [found] = Batch.from_json(batch.value).examples
    assert (found.messages, found.choices) == (messages, choices), "nothing is lost on the way"
    return found


EVENTS: tuple[tuple[str, Any, int], ...] = (
    ("thumbs", "up", 1),
    ("correction", "100 degrees.", 1),
    ("preference", {"over": 0}, 1),
    ("preference", {"under": "100 degrees."}, 1),
    ("preference", {"over": 1}, 0),
)


def test_feedback_on_a_tool_call_has_a_reason_and_the_rest_trains() -> None:
    found = joined((QUESTION,), CHOICES, *EVENTS, ("thumbs", "up", 0), ("correction", "95 degrees.", 0))
    rows, quarantined = rows_of(example(found))
    assert [row.reason for row in quarantined] == [TOOL_CALLS_NOT_TRAINED] * len(EVENTS)
    assert [row.kind for row in rows] == ["thumbs", "correction"]
    assert first_fault(rows[1]) is None


@pytest.mark.parametrize("comments", ["hold", "append"])
def test_conversation_with_tool_calls_does_not_train(comments: Any) -> None:
    found = joined(ASKED, CHOICES, ("correction", "95 degrees.", 0), ("comment", "Name the source.", 0))
    rows, quarantined = rows_of(example(found), comments)
    assert rows == []
    assert {row.reason for row in quarantined} == {TOOL_CALLS_NOT_TRAINED}
