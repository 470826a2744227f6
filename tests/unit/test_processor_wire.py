"""The processor's fast encoding equals that of the pydantic models, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.processor.core.batches import BatchLimits
from services.processor.core.outbox import Outbox
from services.processor.core.state import pending_key
from services.processor.core.step import ProcessorStep
from services.processor.core.wire import OutcomeOut, TallyOut, rfc3339, wire_struct
from shared.cloudevents import cloudevent
from shared.events import (
    Batch,
    Choice,
    LogRecord,
    Message,
    Outcome,
    ResponseSample,
    Tally,
    ToolCall,
    ToolFunction,
    from_ms,
)
from shared.records import Output, Record
from shared.stream.state_store import MemoryStore
from shared.stream.write_buffer import WriteBuffer
from shared.topics import (
    CHAT_RESPONSES,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    RESPONSE_SAMPLES,
    TRAINING_BATCHES,
    Topic,
)
from tests.unit.processor_driver import T0, ProcessorDriver, feedback, response

MODELS: dict[str, tuple[Topic, type[LogRecord]]] = {
    topic.name: (topic, kind)
    for topic, kind in (
        (TRAINING_BATCHES, Batch),
        (FEEDBACK_OUTCOMES, Outcome),
        (FEEDBACK_TALLIES, Tally),
        (RESPONSE_SAMPLES, ResponseSample),
    )
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CONTENT: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("thumbs"), st.sampled_from(["up", "down"])),
    st.tuples(st.just("rating"), st.integers(1, 5)),
    st.tuples(st.just("correction"), TEXT.filter(bool)),
    st.tuples(st.just("comment"), TEXT.filter(bool)),
    st.tuples(st.just("preference"), TEXT.filter(bool).map(lambda text: {"over": text})),
    st.tuples(st.just("preference"), st.just({"under": 1})),
)


@settings(max_examples=150)
@given(
    question=TEXT,
    answers=st.lists(st.tuples(TEXT, st.sampled_from([None, "stop"])), min_size=1, max_size=3),
    events=st.lists(st.tuples(CONTENT, st.lists(TEXT.filter(bool), max_size=2)), max_size=5),
    asker=st.sampled_from([None, "u_ann"]),
    at_ms=st.integers(0, 5_000),
)
def test_every_record_is_encoded_as_by_its_model(
    question: str,
    answers: list[tuple[str, str | None]],
    events: list[tuple[tuple[str, Any], list[str]]],
    asker: str | None,
    at_ms: int,
) -> None:
    driver = ProcessorDriver(BatchLimits(examples=2))
    call = ToolCall(id="c1", type="function", function=ToolFunction(name=question, arguments=question))
    choices = tuple(
        Choice(index=n, text=text, finish_reason=reason, tool_calls=(call,) if reason is None else None)
        for n, (text, reason) in enumerate(answers)
    )
    messages = (
        Message(role="user", content=question, name=asker),
        Message(role="assistant", content="", tool_calls=(call, call)),
        Message(role="tool", content=question, tool_call_id="c1"),
    )
    driver.append(response(messages=messages, choices=choices, user_id=asker), at_ms / 1000)
    for number, ((kind, value), tags) in enumerate(events):
        event = feedback(kind, value, f"e{number}", user=f"u{number}", tags=tuple(tags))
        driver.append(event, at_ms / 1000 + number)
    driver.tick(100)
    for output in driver.outputs:
        topic, model = MODELS[output.topic]
        record = model.from_json(output.value)
        assert record.to_json() == output.value
        if isinstance(record, Batch):
            assert record.content_hash == Batch.hash_of(record.examples)
        headers = dict(output.headers)
        expected = cloudevent(
            topic,
            (output.key or b"").decode(),
            record,
            source="processor",
            ce_id=headers["ce_id"].decode(),
            at=from_ms(T0 + at_ms + 1000),
            partition=0,
        )
        assert (expected.key, expected.partition) == (output.key, output.partition)
        assert {name: value for name, value in expected.headers if name != "ce_time"} == {
            name: value for name, value in output.headers if name != "ce_time"
        }


@given(st.integers())
def test_times_are_encoded_as_by_the_models(ms: int) -> None:
    tally = Tally(line="a", version="v", user_id="u", partition=0, updated_at=from_ms(ms))
    assert f'"updated_at":"{rfc3339(ms)}"'.encode() in tally.to_json()


def test_wire_struct_has_the_fields_of_its_model_in_order() -> None:
    for _, model in MODELS.values():
        assert wire_struct(model).__struct_fields__ == tuple(model.model_fields)


def test_wire_struct_refuses_missing_and_unknown_fields() -> None:
    """The type checker cannot see these fields, so construction must fail loudly."""
    with pytest.raises(TypeError, match="response_id"):
        OutcomeOut(line="assistant")
    known = {
        "line": "a",
        "version": "v",
        "user_id": "u",
        "partition": 0,
        "updated_at": "2026-01-01T00:00:00Z",
    }
    with pytest.raises(TypeError, match="unknown"):
        TallyOut(**known, unknown=1)


def test_state_that_lives_within_one_slice_is_never_written() -> None:
    """A batch that is filled and cut in one slice leaves no pending examples behind."""
    store, step = MemoryStore(), ProcessorStep(BatchLimits(examples=2))
    buffer = WriteBuffer(store, 1_000_000)
    for number in range(2):
        for topic, record in (
            ("chat.responses", response(f"r{number}")),
            ("feedback.events", feedback("correction", "So.", f"e{number}", response_id=f"r{number}")),
        ):
            buffer.savepoint()
            list(step(buffer, Record(topic, 0, number, T0, f"r{number}".encode(), record.to_json())))
    assert not [key for key in buffer.writes if key.startswith(pending_key("assistant", b""))]
    assert sorted({key[:2] for key in buffer.writes}) == [b"a/", b"b/", b"j/", b"m/", b"t/", b"x/", b"y/"]


def test_tallies_and_samples_of_all_partitions_go_to_one() -> None:
    outbox = Outbox(Record(CHAT_RESPONSES.name, 3, 0, T0, b"r1", b""))
    answer = response(user_id="u_ann", latency_ms=12.5)
    outbox.sample(answer)
    outbox.sample(answer.model_copy(update={"status": "cancelled"}))
    outbox.sample(answer.model_copy(update={"user_id": None}))
    tally = TallyOut(line="l", version="v", user_id="u_ann", partition=3, updated_at=outbox.now)
    outbox.tally("v", "u_ann", tally)
    outbox.delete_tally("v", "u_ann")
    outputs = [output for output in outbox.outputs if isinstance(output, Output)]
    assert [(o.topic, o.partition) for o in outputs] == [
        (RESPONSE_SAMPLES.name, 0), (FEEDBACK_TALLIES.name, 0), (FEEDBACK_TALLIES.name, 0),
    ]  # fmt: skip
    sample = ResponseSample.from_json(outputs[0].value)
    assert (sample.version, sample.failed, sample.latency_ms) == (answer.version, False, 12.5)


def test_newest_signals_of_a_user_become_a_vote() -> None:
    driver = ProcessorDriver(BatchLimits(examples=64))
    driver.append(response(), 0)
    votes = [
        ("thumbs", "up", 1.0),
        ("rating", 2, 0.25),
        ("correction", "x", 0.0),
        ("comment", "It is long.", 0.0),
    ]
    for number, (kind, value, vote) in enumerate(votes):
        driver.append(feedback(kind, value, f"e{number}", user="u"), number + 1)
        (newest,) = [Tally.from_json(o.value) for o in driver.outputs if o.topic == FEEDBACK_TALLIES.name][
            -1:
        ]
        assert (newest.vote, newest.vote_on) == (vote, from_ms(T0)), kind
