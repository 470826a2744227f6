"""Tests of what a partition may continue from after the log was changed from outside, and of recovering it."""

from __future__ import annotations

from typing import Any

import pytest

from services.processor.core.numbering import BatchNumbering
from services.processor.core.state import OpenBatch
from services.rollout.core import store
from services.rollout.core.decision import LineState
from services.rollout.core.numbering import RolloutNumbering
from shared.errors import Rejected
from shared.events import from_ms
from shared.records import Record
from shared.stream.continuity import changelog_loss, halt_message, positions_loss
from shared.stream.partition import Positions
from shared.stream.recovery import SOURCES, plan_positions
from shared.stream.state_store import MemoryStore
from shared.stream.write_buffer import WriteBuffer
from shared.topics import OPERATOR_COMMANDS
from shared.versions import RolloutRecord, VersionRef

IDS = {"a": "id-a", "b": "id-b", "log": "id-log"}
BOUNDS = {"a": (10, 100), "b": (0, 50)}


def positions(a: int = 40, b: int = 20, **fields: Any) -> Positions:
    return Positions({"a": a, "b": b}, 1_700, **({"topics": IDS} | fields))


def loss(logged: Positions | None, committed: dict[str, int], used: tuple[str, ...] = ()) -> str | None:
    return positions_loss(("a", "b"), IDS, logged, committed, used)


# --- positions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [{}, {"a": 40, "b": 20}, {"a": 3}, {"a": 0, "b": 0}])
def test_state_continues_where_it_is(committed: dict[str, int]) -> None:
    assert loss(positions(), committed) is None


def test_new_deployment_starts() -> None:
    assert loss(None, {}) is None
    assert loss(None, {"a": 0}) is None


def test_state_of_an_earlier_release_continues() -> None:
    assert loss(positions(topics={}), {"a": 40}) is None


def test_committed_offsets_without_state_halt() -> None:
    reason = loss(None, {"a": 5_000, "b": 0})
    assert reason == "the group has processed records (a 5000), but the changelog holds no state"


def test_numbered_outputs_without_state_halt() -> None:
    assert "training.batches" in (loss(None, {}, ("training.batches",)) or "")


@pytest.mark.parametrize("committed", [{"a": 41}, {"a": 40, "b": 21}])
def test_offsets_ahead_of_the_state_halt(committed: dict[str, int]) -> None:
    assert "ahead of the state" in (loss(positions(), committed) or "")


def test_input_that_was_created_again_halts() -> None:
    reason = loss(positions(topics=IDS | {"b": "older"}), {})
    assert reason is not None
    assert reason.startswith("b was deleted and created again")


# --- the changelog ------------------------------------------------------------------------------------------------


def changelog(logged: Positions | None, low: int = 0, store_id: str | None = None) -> str | None:
    return changelog_loss("log", IDS["log"], low, logged, store_id)


def test_whole_changelog_rebuilds_any_store() -> None:
    assert changelog(None) is None
    assert changelog(positions()) is None
    assert changelog(positions(), store_id="older") is None
    assert changelog(positions(topics={}), store_id="older") is None


def test_empty_changelog_of_an_older_store_halts() -> None:
    assert "created again" in (changelog(None, store_id="older") or "")


@pytest.mark.parametrize("logged", [None, positions(), positions(changelog_start=6)])
def test_cut_changelog_halts(logged: Positions | None) -> None:
    assert "before offset 7" in (changelog(logged, low=7) or "")


def test_cut_changelog_continues_once_a_person_accepted_it() -> None:
    assert changelog(positions(changelog_start=7), low=7) is None


def test_changelog_that_was_replaced_in_use_halts() -> None:
    assert "only part" in (changelog(positions(topics=IDS | {"log": "older"})) or "")


def test_message_names_the_command() -> None:
    message = halt_message("b was deleted", "processor", 3)
    assert "python -m services.processor recover --partition 3" in message
    assert "docs/operations.md" in message


# --- recovery -----------------------------------------------------------------------------------------------------


def plan(source: str, logged: Positions | None = None, **fields: Any) -> Positions:
    committed = fields.pop("committed", {"a": 60, "b": 30})
    return plan_positions(source, BOUNDS, IDS, logged, committed, 7, **fields)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("changelog", {"a": 40, "b": 20}),
        ("group", {"a": 60, "b": 30}),
        ("inputs-earliest", {"a": 10, "b": 0}),
        ("inputs-latest", {"a": 100, "b": 50}),
    ],
)
def test_source_decides_the_positions(source: str, expected: dict[str, int]) -> None:
    planned = plan(source, positions(rereads={"out": 3}, recoveries=4))
    assert planned == Positions(expected, 1_700, {"out": 3}, IDS, 7, 5)


@pytest.mark.parametrize("outside", [3, 101])
def test_position_outside_the_log_becomes_the_earliest(outside: int) -> None:
    assert plan("changelog", positions(a=outside)).offsets == {"a": 10, "b": 20}
    assert plan("group", positions(), committed={"a": outside, "b": 1}).offsets == {"a": 10, "b": 1}


def test_input_that_was_created_again_is_read_from_its_beginning() -> None:
    logged = positions(topics=IDS | {"b": "older"})
    assert plan("changelog", logged).offsets == {"a": 40, "b": 0}


def test_records_that_must_not_repeat_are_skipped() -> None:
    once = frozenset({"b"})
    assert plan("inputs-earliest", None, processed_once=once).offsets == {"a": 10, "b": 50}
    assert plan("changelog", positions(), processed_once=once).offsets == {"a": 40, "b": 20}


def test_source_without_positions_is_refused() -> None:
    with pytest.raises(Rejected, match="--from changelog: there are no positions"):
        plan("changelog")
    with pytest.raises(Rejected, match="--from group"):
        plan("group", committed={})


@pytest.mark.parametrize("source", SOURCES)
def test_recovered_partition_is_not_halted_again(source: str) -> None:
    planned = plan(source, positions(topics=IDS | {"log": "older", "b": "older"}))
    assert changelog_loss("log", IDS["log"], 7, planned, "older") is None
    assert loss(planned, planned.offsets, ("training.batches",)) is None


# --- numbers of outputs -------------------------------------------------------------------------------------------


def batch(batch_id: str) -> Record:
    return Record("training.batches", 0, 0, 0, batch_id.encode(), b"{}")


def test_batch_numbers_continue_above_those_in_the_log() -> None:
    records = [batch(name) for name in ("a-0-1", "a-0-12", "a-0-7", "line-of-2-0-3")]
    state = {b"b/a": OpenBatch(number=5, examples=2, size=9).to_json()}
    writes = BatchNumbering().writes(records, state)
    assert OpenBatch.from_json(writes[b"b/a"]) == OpenBatch(number=13, examples=2, size=9)
    assert OpenBatch.from_json(writes[b"b/line-of-2"]) == OpenBatch(number=4)


def test_batch_numbers_above_the_log_stay() -> None:
    state = {b"b/a": OpenBatch(number=13).to_json()}
    assert BatchNumbering().writes([batch("a-0-12")], state) == {}
    assert BatchNumbering().is_needed(b"b/a")
    assert not BatchNumbering().is_needed(b"a/response")


def rollout(seq: int) -> Record:
    stable = VersionRef(version="assistant@base-00000001", kind="base", uri="", digest="1" * 64)
    value = RolloutRecord(
        line="assistant",
        seq=seq,
        action="adopt_base",
        stable=stable,
        reason="test",
        decided_at=from_ms(1_000),
    )
    return Record("model.rollout", 0, seq, 0, b"assistant", value.to_json())


def test_rollout_continues_from_its_newest_record() -> None:
    writes = RolloutNumbering().writes([rollout(4), rollout(9), rollout(2)], {})
    buffer = WriteBuffer(MemoryStore(), 1_000_000)
    for key, value in writes.items():
        buffer.put(key, value)
    line = store.read_line(buffer, "assistant")
    assert line.record is not None
    assert line.record.seq == 9
    assert RolloutNumbering().writes([rollout(9)], writes) == {}
    assert line == LineState(line="assistant", record=line.record)
    assert OPERATOR_COMMANDS.name in RolloutNumbering().processed_once
