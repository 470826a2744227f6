"""The rollout's step: applies the rules of `rules.py` to records, and publishes the decisions. Pure.

State of its only partition: `l/<line>` is a `LineState`, `c/<command_id>` the append time of an executed command.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from services.rollout.core import rules
from services.rollout.core.rules import LineState
from shared.cloudevents import cloudevent, traceparent_of
from shared.commands import COMMAND, EXECUTORS, Command, CommandResult
from shared.errors import LoopwrightError, Rejected
from shared.events import LogRecord, from_ms, parse_union
from shared.records import Output, Record
from shared.stream.step import State, Tick
from shared.topics import MODEL_ROLLOUT, MODEL_VERSIONS, OPERATOR_COMMANDS, OPERATOR_RESULTS, Topic
from shared.versions import ModelVersion

SERVICE: Final = "rollout"


def rollout_step(state: State, record: Record | Tick) -> Iterator[Output]:
    """Process one record: a `Step` over `model.versions` and `operator.commands`."""
    if isinstance(record, Tick):
        return
    if record.topic == MODEL_VERSIONS.name:
        yield from _version(state, ModelVersion.from_json(record.value), record)
    elif record.topic == OPERATOR_COMMANDS.name:
        yield from _command(state, parse_union(COMMAND, record.value), record)
    else:
        raise Rejected(f"the rollout has no rule for records of {record.topic}")


def _version(state: State, version: ModelVersion, record: Record) -> Iterator[Output]:
    decision = rules.on_version(_line(state, version.line), version, record.timestamp)
    yield from _apply(state, decision, record)


def _command(state: State, command: Command, record: Record) -> Iterator[Output]:
    """Execute a command of the rollout once, and publish its result. Commands of other services are ignored."""
    executed = b"c/" + command.command_id.encode()
    if EXECUTORS.get(command.kind) != SERVICE or state.get(executed) is not None:
        return
    state.put(executed, str(record.timestamp).encode())
    try:
        decision = rules.on_command(_line(state, command.line), command, record.timestamp)
    except Rejected as refusal:
        yield _result(command, "refused", refusal, record)
        return
    yield from _apply(state, decision, record)
    yield _result(command, "done", decision.message, record)


def _line(state: State, line: str) -> LineState:
    value = state.get(b"l/" + line.encode())
    return LineState(line=line) if value is None else LineState.model_validate_json(value)


def _apply(state: State, decision: rules.Decision, record: Record) -> Iterator[Output]:
    state.put(
        b"l/" + decision.state.line.encode(), decision.state.model_dump_json(exclude_none=True).encode()
    )
    if decision.record is not None:
        line = decision.record.line
        yield _output(MODEL_ROLLOUT, line, decision.record, f"{line}/{decision.record.seq}", record)


def _result(
    command: Command, status: Literal["done", "refused"], message: str | LoopwrightError, record: Record
) -> Output:
    result = CommandResult(
        line=command.line,
        command_id=command.command_id,
        status=status,
        message=str(message)[:2048],
        executor=SERVICE,
        finished_at=from_ms(record.timestamp),
    )
    return _output(OPERATOR_RESULTS, command.command_id, result, f"{command.command_id}/{SERVICE}", record)


def _output(topic: Topic, key: str, content: LogRecord, ce_id: str, cause: Record) -> Output:
    return cloudevent(
        topic,
        key,
        content,
        source=SERVICE,
        ce_id=ce_id,
        at=from_ms(cause.timestamp),
        traceparent=traceparent_of(cause.headers),
        partition=0,
    )
