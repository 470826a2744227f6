"""I7 and I10 in the rollout's rules: seq only grows, and only a pin lets a version serve that did not pass."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from services.rollout.core.step import rollout_step
from shared.commands import COMMAND, CommandResult
from shared.errors import Malformed
from shared.events import LogRecord
from shared.records import Output, Record
from shared.stream.state_store import MemoryStore
from shared.stream.step import Tick
from shared.stream.write_buffer import WriteBuffer
from shared.topics import MODEL_ROLLOUT, MODEL_VERSIONS, OPERATOR_COMMANDS, OPERATOR_RESULTS
from shared.versions import GateReport, ModelVersion, RolloutRecord, VersionRef, version_name

NOW = datetime(2026, 11, 1, tzinfo=UTC)
BASE = version_name("assistant", None, "b" * 64)


def name(number: int) -> str:
    return version_name("assistant", number, f"{number:x}" * 64)


def base() -> ModelVersion:
    ref = VersionRef(version=BASE, kind="base", digest="b" * 64)
    return ModelVersion(line="assistant", ref=ref, base=BASE, base_model="tiny", created_at=NOW)


def trained(number: int, verdict: str = "passed", against: str = BASE) -> ModelVersion:
    ref = VersionRef(version=name(number), kind="lora", uri=f"artifact:{number}", digest=f"{number:x}" * 64)
    gate = GateReport(verdict=verdict, gated_against=against)  # type: ignore[arg-type]
    return ModelVersion(
        line="assistant", ref=ref, number=number, base=BASE, base_model="tiny", gate=gate, created_at=NOW
    )


class Line:
    """One line: the rollout's step over a real store, and the records that it published."""

    def __init__(self, *versions: LogRecord) -> None:
        self.store = MemoryStore()
        self.records: list[RolloutRecord] = []
        self.results: list[CommandResult] = []
        for record in versions:
            self.publish(record)

    def publish(self, record: LogRecord) -> None:
        self._feed(MODEL_VERSIONS.name, record.to_json())

    def command(self, kind: str, command_id: str = "c1", **fields: Any) -> CommandResult | None:
        body = {"line": "assistant", "command_id": command_id, "kind": kind, "issued_at": NOW} | fields
        before = len(self.results)
        self._feed(OPERATOR_COMMANDS.name, COMMAND.validate_python(body).to_json())
        return self.results[-1] if len(self.results) > before else None

    def _feed(self, topic: str, value: bytes) -> None:
        buffer = WriteBuffer(self.store, 1_000_000)
        buffer.savepoint()
        outputs: list[Output] = list(
            rollout_step(buffer, Record(topic, 0, 0, 1_760_000_000_000, b"k", value))
        )
        self.store.apply(buffer.writes, 0)
        self.records += [RolloutRecord.from_json(o.value) for o in outputs if o.topic == MODEL_ROLLOUT.name]
        self.results += [
            CommandResult.from_json(o.value) for o in outputs if o.topic == OPERATOR_RESULTS.name
        ]

    @property
    def stable(self) -> str:
        return self.records[-1].stable.version


def test_first_record_of_a_line_names_its_base_as_stable() -> None:
    line = Line(base())
    assert [(r.seq, r.action, r.stable.version) for r in line.records] == [(1, "adopt_base", BASE)]


def test_passed_version_takes_over_and_names_the_previous_one() -> None:
    line = Line(base(), trained(1))
    assert (line.stable, line.records[-1].seq, line.records[-1].previous) == (name(1), 2, base().ref)


@pytest.mark.parametrize("verdict", ["failed", "inconclusive"])
def test_version_that_did_not_pass_is_never_promoted(verdict: str) -> None:
    line = Line(base(), trained(1, verdict))
    result = line.command("promote", version=name(1))
    assert result is not None
    assert (result.status, line.stable) == ("refused", BASE)
    assert "pin" in result.message


def test_pin_serves_a_failed_version_until_resume() -> None:
    line = Line(base(), trained(1, "failed"))
    line.command("pin", version=name(1))
    assert line.stable == name(1)
    line.publish(trained(2, against=name(1)))
    assert line.stable == name(1)
    line.command("resume", "c2")
    assert line.stable == name(2)


def test_version_gated_against_a_former_stable_is_not_promoted() -> None:
    line = Line(base(), trained(1), trained(2, against=BASE))
    assert line.stable == name(1)


def test_rollback_returns_to_the_previous_or_a_named_version() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1)))
    line.command("rollback")
    assert line.stable == name(1)
    line.command("rollback", "c2", version=BASE)
    assert line.stable == BASE


def test_rollback_of_the_first_stable_is_refused_with_a_reason() -> None:
    result = Line(base()).command("rollback")
    assert result is not None
    assert (result.status, "nothing before" in result.message) == ("refused", True)


def test_command_sent_twice_is_executed_once() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1)))
    line.command("rollback", "same")
    assert line.command("rollback", "same") is None
    assert line.stable == name(1)


def test_version_published_twice_is_considered_once() -> None:
    line = Line(base(), trained(1))
    line.command("rollback")
    line.publish(trained(1))
    assert line.stable == BASE


def test_seq_only_grows_by_one() -> None:
    line = Line(base(), trained(1))
    for number, kind in enumerate(("pause", "resume", "rollback", "pause")):
        line.command(kind, f"c{number}")
    assert [record.seq for record in line.records] == list(range(1, 7))


def test_line_without_a_base_refuses_commands() -> None:
    result = Line().command("pause")
    assert result is not None
    assert (result.status, "no base" in result.message) == ("refused", True)


def test_commands_of_other_services_are_ignored() -> None:
    assert Line(base()).command("train_now") is None


def test_unknown_version_is_refused_by_name() -> None:
    result = Line(base()).command("promote", version=name(7))
    assert result is not None
    assert name(7) in result.message


def test_garbage_is_malformed_and_ticks_do_nothing() -> None:
    buffer = WriteBuffer(MemoryStore(), 1_000)
    with pytest.raises(Malformed):
        list(rollout_step(buffer, Record(MODEL_VERSIONS.name, 0, 0, 0, b"k", b"{")))
    assert list(rollout_step(buffer, Tick(0, 0, 0))) == []
