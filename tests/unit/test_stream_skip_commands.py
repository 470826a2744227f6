"""Following of `skip` commands: which are offered to the engine, until when, and what their results say."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from services.processor.service import engine_config
from services.processor.settings import ProcessorSettings
from services.rollout.service import engine_config as rollout_config
from services.rollout.settings import RolloutSettings
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryLog, InMemoryLogReader
from shared.commands import COMMAND, SKIPPING_SERVICES, CommandResult, Skip
from shared.errors import Misconfigured
from shared.events import from_ms
from shared.records import Output
from shared.stream.engine import SkipRequest
from shared.stream.skip_commands import MAX_AGE_MS, REFUSE_AFTER_S, SkipCommands
from shared.topics import OPERATOR_COMMANDS, OPERATOR_RESULTS


class FakeEngine:
    """Engine that notes the requests."""

    def __init__(self) -> None:
        self.requests: list[SkipRequest] = []

    def request_skip(self, request: SkipRequest) -> None:
        self.requests.append(request)


class Rig:
    """Skip commands of one service over a log in memory."""

    def __init__(self, service: str = "processor") -> None:
        self.clock = ManualClock()
        self.log = InMemoryLog(1, self.clock)
        self.engine: Any = FakeEngine()
        self.commands = SkipCommands(
            self.engine, service, lambda topics: InMemoryLogReader(self.log, topics), self.clock
        )
        self.read = 0

    def issue(self, command_id: str = "c1", **changes: Any) -> None:
        fields: dict[str, Any] = {
            "kind": "skip",
            "line": "assistant",
            "command_id": command_id,
            "issued_by": "ann",
            "issued_at": from_ms(self.clock.now_ms()).isoformat(),
            "topic": "feedback.events",
            "partition": 3,
            "offset": 1042,
            "reason": "wrong data of an import",
        }
        command = COMMAND.validate_python(fields | changes)
        self.log.append(Output(OPERATOR_COMMANDS.name, b"assistant", command.to_json(), (), 0))

    def offered(self) -> list[SkipRequest]:
        """Apply what is new in the log, and return what is offered now."""
        for topic in (OPERATOR_COMMANDS.name, OPERATOR_RESULTS.name):
            self.commands.apply(self.log.records(topic))
        self.engine.requests.clear()
        self.commands.offer()
        return list(self.engine.requests)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_command_is_offered_until_its_result_is_in_the_log(rig: Rig) -> None:
    rig.issue()
    (request,) = rig.offered()
    assert (request.topic, request.partition, request.offset) == ("feedback.events", 3, 1042)
    assert request.why == "skipped by ann, command c1: wrong data of an import"
    assert len(rig.offered()) == 1
    output = request.result("done", "skipped")
    rig.log.append(output)
    assert rig.offered() == []
    result = CommandResult.from_json(output.value)
    assert (result.command_id, result.status, result.executor) == ("c1", "done", "processor")
    assert output.topic == "operator.results"


def test_command_with_a_result_is_never_offered_after_a_restart(rig: Rig) -> None:
    rig.issue()
    rig.log.append(rig.offered()[0].result("refused", "not halted"))
    restarted = SkipCommands(rig.engine, "processor", lambda _topics: None, rig.clock)  # type: ignore[arg-type, return-value]
    restarted.apply(rig.log.records(OPERATOR_RESULTS.name))
    restarted.apply(rig.log.records(OPERATOR_COMMANDS.name))
    rig.engine.requests.clear()
    restarted.offer()
    assert rig.engine.requests == []


def test_refusal_waits_for_the_result_of_a_former_owner(rig: Rig) -> None:
    rig.issue()
    assert not rig.offered()[0].may_refuse
    rig.clock.advance(REFUSE_AFTER_S)
    assert rig.offered()[0].may_refuse


def test_old_command_is_refused(rig: Rig) -> None:
    rig.issue()
    rig.clock.advance(MAX_AGE_MS / 1000 + 1)
    assert "older than a day" in (rig.offered()[0].refusal or "")


def test_other_commands_and_garbage_are_ignored(rig: Rig) -> None:
    rig.log.append(Output(OPERATOR_COMMANDS.name, b"k", b"{", (), 0))
    rig.log.append(Output(OPERATOR_RESULTS.name, b"k", None, (), 0))
    rig.issue(topic="model.versions", partition=0)
    assert rig.offered() == []


def test_rollout_answers_for_its_own_topics() -> None:
    rig = Rig("rollout")
    rig.issue(topic="operator.commands", partition=0)
    rig.issue("c2")
    assert [request.command_id for request in rig.offered()] == ["c1"]


def test_missing_topics_are_waited_for() -> None:
    def missing(_topics: object) -> Any:
        raise Misconfigured("topic operator.commands does not exist")

    commands = SkipCommands(FakeEngine(), "processor", missing, ManualClock())  # type: ignore[arg-type]
    commands.start()
    try:
        while "does not exist" not in commands.status():
            pass
    finally:
        commands.stop()


def test_every_input_of_an_engine_can_be_skipped_by_its_service() -> None:
    inputs = dict.fromkeys(engine_config(ProcessorSettings()).inputs, "processor")
    inputs |= dict.fromkeys(rollout_config(RolloutSettings()).inputs, "rollout")
    assert inputs == SKIPPING_SERVICES
    assert set(Skip.model_fields["topic"].annotation.__args__) == set(inputs)  # type: ignore[union-attr]


@pytest.mark.parametrize("changes", [{"topic": "training.batches"}, {"reason": ""}, {"offset": -1}])
def test_command_that_no_service_could_execute_is_invalid(rig: Rig, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        rig.issue(**changes)
