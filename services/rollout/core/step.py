"""The rollout's step: applies the rules of `rules.py` to records, and publishes the decisions. Pure.

State of its only partition (`store.py`): lines, their versions, and the results of executed commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from services.rollout.core import rules, store
from services.rollout.core.store import ExecutedCommand
from shared.cloudevents import cloudevent, traceparent_of
from shared.commands import COMMAND, EXECUTORS, Command, CommandResult, GateAgain
from shared.errors import Rejected
from shared.events import LogRecord, from_ms, parse_union, sha256
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
    line = store.read_line(state, version.line)
    decision = rules.on_version(line, version, store.lookup(state, version.line), record.timestamp)
    yield from _apply(state, decision, record)


def _command(state: State, command: Command, record: Record) -> Iterator[Output]:
    """Execute a command of the rollout once. A repeated one changes nothing and has the same result again.

    Commands of other services are ignored. A command with the id of another one is refused.
    """
    if EXECUTORS.get(command.kind) != SERVICE:
        return
    content = command.content_digest()
    executed = store.read_executed(state, command.command_id)
    if executed is None:
        outputs, executed = _execute(state, command, content, record)
        store.remember(state, command.command_id, executed)
        yield from outputs
    elif executed.content not in ("", content):
        executed = ExecutedCommand(
            content=content,
            status="refused",
            message=f"command id {command.command_id} was used before for another command: use a new id",
            at_ms=record.timestamp,
        )
    yield _result(command, executed, record)


def _execute(
    state: State, command: Command, content: str, record: Record
) -> tuple[list[Output], ExecutedCommand]:
    now_ms = record.timestamp
    try:
        line = store.read_line(state, command.line)
        decision = rules.on_command(line, command, store.lookup(state, command.line), now_ms)
    except Rejected as refusal:
        return [], ExecutedCommand(
            content=content, status="refused", message=str(refusal)[:2048], at_ms=now_ms
        )
    executed = ExecutedCommand(content=content, status="done", message=decision.message[:2048], at_ms=now_ms)
    return list(_apply(state, decision, record)), executed


def _apply(state: State, decision: rules.Decision, record: Record) -> Iterator[Output]:
    """Store what a decision changes, and return what it publishes."""
    store.write(state, decision.state, decision.versions)
    line, published = decision.state.line, decision.state.record
    if decision.record is not None:
        yield _output(MODEL_ROLLOUT, line, decision.record, f"{line}/{decision.record.seq}", record)
    if decision.gate_again is not None and published is not None:
        command = GateAgain(
            line=line,
            command_id=f"gate-again-{line}-{published.seq}-{sha256(decision.gate_again.encode())[:8]}",
            issued_by=SERVICE,
            issued_at=from_ms(record.timestamp),
            version=decision.gate_again,
        )
        yield _output(OPERATOR_COMMANDS, line, command, command.command_id, record)


def _result(command: Command, executed: ExecutedCommand, record: Record) -> Output:
    result = CommandResult(
        line=command.line,
        command_id=command.command_id,
        status=executed.status,
        message=executed.message,
        executor=SERVICE,
        finished_at=from_ms(executed.at_ms),
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
