"""I7 and I10 in the rollout's rules: seq only grows, and only a pin lets a version serve that did not pass."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rollout.core import store
from services.rollout.core.policy import CanaryPolicy
from services.rollout.core.step import RolloutStep
from services.rollout.core.store import UnreadableState
from shared.commands import COMMAND
from shared.errors import Conflict, Malformed, Rejected
from shared.events import parse_union
from shared.records import Record
from shared.stream.state_store import MemoryStore
from shared.stream.step import Tick
from shared.stream.write_buffer import WriteBuffer
from shared.topics import MODEL_VERSIONS, OPERATOR_COMMANDS, Topic
from shared.versions import (
    MAX_HISTORY,
    ModelVersion,
    VersionRef,
)
from tests.rollout_factories import BASE, Line, base, name, trained


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


def test_version_gated_against_a_former_stable_is_gated_again() -> None:
    line = Line(base(), trained(1), trained(2, against=BASE))
    assert (line.stable, line.records[-1].action, line.records[-1].waiting) == (name(1), "hold", name(2))
    assert [(c.version, c.issued_by) for c in line.requests] == [(name(2), "rollout")]
    line.publish(trained(2, against=name(1), gate=2))
    assert (line.stable, line.records[-1].waiting) == (name(2), None)


def test_version_that_fails_its_new_gate_waits_no_longer() -> None:
    line = Line(base(), trained(1), trained(2, against=BASE), trained(2, "failed", against=name(1), gate=2))
    assert (line.stable, line.records[-1].waiting) == (name(1), None)
    assert "did not pass its new gate" in line.records[-1].reason


def test_new_gate_against_another_former_stable_is_requested_again() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1)), trained(3, against=BASE))
    line.command("rollback")
    line.command("resume", "c2")
    line.publish(trained(3, against=name(2), gate=2))
    assert line.stable == name(1)
    assert [c.version for c in line.requests] == [name(3)] * 3
    assert len({c.command_id for c in line.requests}) == 3


def test_resume_promotes_a_waiting_version_if_its_stable_serves_again() -> None:
    line = Line(base(), trained(1), trained(2, against=BASE))
    line.command("rollback")
    line.command("resume", "c2")
    assert line.stable == name(2)


def test_earlier_gate_report_never_replaces_a_later_one() -> None:
    line = Line(
        base(), trained(1), trained(2, "failed", against=name(1), gate=2), trained(2, against=name(1))
    )
    assert line.stable == name(1)


def test_version_that_waits_during_a_pause_is_gated_again_after_it() -> None:
    line = Line(base(), trained(1))
    line.command("pause")
    line.publish(trained(2, against=BASE))
    assert (line.requests, line.records[-1].waiting) == ([], name(2))
    line.command("resume", "c2")
    assert ([c.version for c in line.requests], line.stable) == ([name(2)], name(1))


# --- rollback ---


def test_repeated_rollback_walks_back_to_the_base_and_is_then_refused() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1)), trained(3, against=name(2)))
    stables = []
    for number in range(3):
        line.command("rollback", f"c{number}")
        stables.append(line.stable)
    assert stables == [name(2), name(1), BASE]
    result = line.command("rollback", "c3")
    assert result is not None
    assert (result.status, "no earlier version" in result.message, line.stable) == ("refused", True, BASE)


def test_rollback_after_another_promotion_starts_from_there() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1)))
    line.command("rollback")
    line.command("resume", "c2")
    line.publish(trained(3, against=name(1)))
    line.command("rollback", "c3")
    assert line.stable == name(1)
    line.command("rollback", "c4")
    assert line.stable == BASE


def test_rollback_may_name_an_earlier_version() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1)), trained(3, against=name(2)))
    line.command("rollback", version=name(1))
    assert line.stable == name(1)
    skipped = line.command("rollback", "c2", version=name(2))
    assert skipped is not None
    assert (skipped.status, line.stable) == ("refused", name(1))
    line.command("rollback", "c3")
    assert line.stable == BASE


def test_rollback_that_names_the_version_it_leaves_happens_once() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1)))
    line.command("rollback", leaving=name(2))
    second = line.command("rollback", "c2", leaving=name(2))
    assert second is not None
    assert (second.status, line.stable) == ("done", name(1))
    assert "rolled back from already" in second.message


def test_rollback_to_the_version_that_serves_changes_nothing() -> None:
    line = Line(base(), trained(1))
    before = len(line.records)
    result = line.command("rollback", version=name(1))
    assert result is not None
    assert (result.status, len(line.records)) == ("done", before)


def test_rollback_passes_over_a_version_that_only_a_pin_let_serve() -> None:
    line = Line(base(), trained(1, "failed"))
    line.command("pin", version=name(1))
    line.command("resume", "c2")
    line.publish(trained(2, against=name(1)))
    assert line.stable == name(2)
    line.command("rollback", "c3")
    assert line.stable == BASE


def test_rollback_passes_over_a_version_that_failed_a_later_gate() -> None:
    """I10: `loopwright gate VERSION --again` may be used on any version, so also on one in the history."""
    line = Line(
        base(), trained(1), trained(2, against=name(1)), trained(1, "failed", against=name(2), gate=2)
    )
    line.command("rollback")
    assert line.stable == BASE


def test_rollback_pauses_promotion_of_the_same_data() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1), through={"0": 5, "1": 2}))
    line.command("rollback")
    assert line.records[-1].paused
    line.publish(trained(3, against=name(1), through={"0": 5, "1": 2}))
    assert (line.stable, line.records[-1].waiting, line.records[-1].paused) == (name(1), name(3), True)


def test_version_with_new_data_ends_the_pause_of_a_rollback() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1), through={"0": 5}))
    line.command("rollback")
    line.publish(trained(3, against=name(1), through={"0": 5, "1": 1}))
    assert (line.stable, line.records[-1].paused) == (name(3), False)


def test_resume_ends_the_pause_of_a_rollback() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1), through={"0": 5}))
    line.command("rollback")
    line.publish(trained(3, against=name(1), through={"0": 5}))
    line.command("resume", "c2")
    assert line.stable == name(3)


def test_pause_by_a_person_outlasts_new_data_after_a_rollback() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1)))
    line.command("pause")
    line.command("rollback", "c2")
    line.publish(trained(3, against=name(1), through={"0": 9}))
    assert (line.stable, line.records[-1].paused) == (name(1), True)


def test_version_that_was_rolled_back_from_is_never_promoted_by_itself() -> None:
    line = Line(base(), trained(1))
    line.command("rollback")
    line.command("resume", "c2")
    line.publish(trained(1, against=BASE, gate=2, through={"0": 99}))
    assert line.stable == BASE
    line.command("promote", "c3", version=name(1))
    assert line.stable == name(1)


def test_history_keeps_the_base_however_many_versions_were_promoted() -> None:
    versions = [trained(n, against=name(n - 1) if n > 1 else BASE) for n in range(1, 41)]
    line = Line(base(), *versions)
    for number in range(MAX_HISTORY):
        line.command("rollback", f"c{number}")
    assert (line.stable, len(line.records[-1].history)) == (BASE, 0)


def test_version_without_a_gate_report_needs_a_pin() -> None:
    line = Line(base(), trained(1, None))
    for kind in ("promote", "rollback"):
        result = line.command(kind, kind, version=name(1))
        assert result is not None
        assert (result.status, "pin" in result.message, line.stable) == ("refused", True, BASE)
    line.command("pin", "c3", version=name(1))
    assert line.stable == name(1)


# --- commands ---


def test_repeated_command_changes_nothing_and_has_the_same_result() -> None:
    line = Line(base(), trained(1), trained(2, against=name(1)))
    first = line.command("rollback", "same")
    line.publish(trained(3, against=name(1), through={"0": 7}))
    assert line.command("rollback", "same") == first
    assert line.stable == name(3)


def test_repeated_command_that_was_refused_stays_refused() -> None:
    line = Line(base())
    first = line.command("promote", "same", version=name(1))
    line.publish(trained(1, against="assistant@v9-99999999"))
    assert line.command("promote", "same", version=name(1)) == first
    assert line.stable == BASE


def test_command_id_of_another_command_is_refused() -> None:
    line = Line(base(), trained(1))
    line.command("pause", "same")
    result = line.command("rollback", "same")
    assert result is not None
    assert (result.status, "use a new id" in result.message, line.stable) == ("refused", True, name(1))


def test_executed_commands_expire_by_count_and_by_stream_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_COMMANDS", 10)
    line = Line(base())
    for number in range(40):
        line.command("pause", f"c{number}")
    assert sum(key.startswith(b"c/") for key in line.all_keys()) == 10
    line.now_ms += store.COMMAND_MS + 1
    for number in range(4):
        line.command("pause", f"later{number}")
    assert sum(key.startswith((b"c/", b"d/")) for key in line.all_keys()) == 8


def test_version_published_twice_is_considered_once() -> None:
    line = Line(base(), trained(1))
    line.command("rollback")
    line.command("resume", "c2")
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


def test_version_published_before_the_base_is_gated_again() -> None:
    line = Line(trained(1), base())
    assert (line.stable, [c.version for c in line.requests]) == (BASE, [name(1)])


def test_commands_of_other_services_are_ignored() -> None:
    assert Line(base()).command("train_now") is None


def test_unknown_version_is_refused_by_name() -> None:
    result = Line(base()).command("promote", version=name(7))
    assert result is not None
    assert name(7) in result.message


# --- state and foreign records ---


def test_thousands_of_versions_stay_within_bounds() -> None:
    """Only the values of one line and one version are written with a record, however many versions there were."""
    line = Line(base())
    for number in range(1, 3_300):
        line.publish(trained(number, "failed"))
    assert max(len(value) for value in line.all_values()) < 2_000
    assert (
        sum(key.startswith(b"v/") for key in line.all_keys()) <= store.MAX_VERSIONS + store.EXPIRED_PER_RECORD
    )
    line.publish(trained(3_300))
    line.command("rollback")
    assert line.stable == BASE


def test_versions_in_use_never_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_VERSIONS", 5)
    line = Line(base(), trained(1), trained(2, against=name(1)))
    for number in range(3, 60):
        line.publish(trained(number, "failed"))
    stables = []
    for command_id in ("c1", "c2"):
        line.command("rollback", command_id)
        stables.append(line.stable)
    assert stables == [name(1), BASE]
    assert sum(key.startswith(b"v/") for key in line.all_keys()) <= 5 + store.EXPIRED_PER_RECORD


def test_unreadable_state_stops_no_other_line() -> None:
    line = Line(base(), trained(1))
    line.store.apply({b"l/assistant": b"\xff{", b"v/assistant/" + name(1).encode(): b"1"}, 0)
    with pytest.raises(UnreadableState):
        line.publish(trained(2))
    result = line.command("rollback")
    assert result is not None
    assert (result.status, "cannot be read" in result.message) == ("refused", True)
    other = VersionRef(version="other@base-bbbbbbbb", kind="base", digest="b" * 64)
    line.publish(base().model_copy(update={"line": "other", "ref": other}))
    assert line.records[-1].line == "other"


def test_version_of_another_line_or_with_another_artifact_is_rejected() -> None:
    line = Line(base(), trained(1))
    with pytest.raises(Rejected, match="does not belong"):
        line.publish(trained(2).model_copy(update={"line": "other"}))
    altered = trained(1, gate=2)
    with pytest.raises(Conflict):
        line.publish(altered.model_copy(update={"ref": altered.ref.model_copy(update={"digest": "e" * 64})}))


def test_garbage_is_malformed_and_ticks_do_nothing() -> None:
    buffer = WriteBuffer(MemoryStore(), 1_000)
    with pytest.raises(Malformed):
        list(RolloutStep(CanaryPolicy())(buffer, Record(MODEL_VERSIONS.name, 0, 0, 0, b"k", b"{")))
    assert list(RolloutStep(CanaryPolicy())(buffer, Tick(0, 0, 0))) == []


# --- properties over histories ---

NUMBERS = st.integers(1, 6)
AGAINST = st.sampled_from([BASE, *(name(n) for n in range(1, 7))])
VERSIONS = st.builds(
    trained,
    NUMBERS,
    st.sampled_from(["passed", "passed", "passed", "failed", "inconclusive", None]),
    AGAINST,
    gate=st.integers(1, 3),
    through=st.dictionaries(st.sampled_from(["0", "1", "x", "-1"]), st.integers(-1, 5), max_size=3),
)
COMMANDS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(
            ["promote", "rollback", "rollback", "rollback", "pause", "resume", "pin", "train_now"]
        )
    },
    optional={"version": AGAINST, "leaving": AGAINST},
)
COMMAND_RECORDS = COMMANDS.map(
    lambda fields: {"line": "assistant", "command_id": "c", "issued_at": "2026-01-01T00:00:00Z"} | fields
)
ODD_VALUES = st.one_of(
    st.none(), st.text(max_size=5), st.integers(-(2**63), 2**63), st.just({}), st.just([]), st.just(0.5),
    st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "\x00", "x" * 300, "other"]),
    st.just({"digest": "a" * 64, "examples": 1, "users": 1, "through": {"9" * 300: 2**62, "²": 1, "0": 10**30}}),
)  # fmt: skip
FOREIGN = st.one_of(
    st.binary(max_size=40),
    st.none(),
    st.builds(
        lambda record, field, value: json.dumps(json.loads(record.to_json()) | {field: value}).encode(),
        VERSIONS,
        st.sampled_from(["line", "ref", "number", "dataset", "gate", "created_at", "base"]),
        ODD_VALUES,
    ),
    st.builds(
        lambda record, field, value: json.dumps(record | {field: value}).encode(),
        COMMAND_RECORDS,
        st.sampled_from(["line", "command_id", "kind", "version", "leaving", "issued_by", "issued_at"]),
        ODD_VALUES,
    ),
)
EVENTS = st.lists(
    st.one_of(
        VERSIONS.map(lambda version: ("version", version)),
        COMMANDS.map(lambda command: ("command", command)),
        st.tuples(
            st.just("foreign"), st.tuples(st.sampled_from([MODEL_VERSIONS, OPERATOR_COMMANDS]), FOREIGN)
        ),
        st.tuples(st.just("time"), st.sampled_from([-1, 0, 1_800_000_000_000, 2**62])),
    ),
    max_size=25,
)


def play(line: Line, kind: str, what: Any, command_id: str) -> None:
    """Feed one event. A `Rejected` record becomes a dead letter; anything else raised would count as a bug."""
    try:
        if kind == "version":
            line.publish(what)
        elif kind == "command":
            fields = {key: value for key, value in what.items() if key != "kind"}
            if what["kind"] in ("promote", "pin"):
                fields = {"version": fields.get("version", BASE)}
            line.command(what["kind"], command_id, **fields)
        elif kind == "time":
            line.now_ms = what
        else:
            line.feed(what[0].name, what[1])
    except Rejected:
        pass


def passed_version(kind: str, what: Any) -> set[str]:
    """Return the version that an event publishes as passed, if any."""
    if kind == "foreign" and what[0] == MODEL_VERSIONS:
        try:
            what = ModelVersion.from_json(what[1])
        except Rejected:
            return set()
    if not isinstance(what, ModelVersion) or what.gate is None or what.gate.verdict != "passed":
        return set()
    return {what.ref.version}


def command_of(kind: str, what: Any) -> tuple[str, str] | None:
    """Return kind and version of the command that an event is, if it is one."""
    if kind == "command":
        return what["kind"], what.get("version", BASE)
    if kind == "foreign" and what[0] == OPERATOR_COMMANDS:
        try:
            command = parse_union(COMMAND, what[1])
        except Rejected:
            return None
        return command.kind, getattr(command, "version", None) or BASE
    return None


@given(EVENTS)
def test_every_history_keeps_the_invariants(events: list[tuple[str, Any]]) -> None:
    line = Line(base())
    passed, pinned = {BASE}, set()
    for number, (kind, what) in enumerate(events):
        passed |= passed_version(kind, what)
        command = command_of(kind, what)
        if command is not None and command[0] == "pin":
            pinned.add(command[1])
        before, known = line.records[-1], len(line.records)
        rolled_back = {n for n in (BASE, *map(name, range(1, 7))) if line.was_rolled_back(n)}
        play(line, kind, what, f"c{number}")
        after = line.records[-1]
        assert len(line.records) - known in (0, 1)
        assert after.seq == len(line.records)
        assert after.stable.version in passed | pinned
        if command is None or command[0] == "rollback":
            assert after.stable.version == before.stable.version or after.stable.version not in rolled_back
        if before.paused and kind == "version" and after.stable != before.stable:
            assert line.state().excluded is None, "the pause of a rollback ended"
        if line.state().waiting is None:
            assert after.waiting is None


@given(EVENTS)
def test_repeating_any_command_changes_nothing(events: list[tuple[str, Any]]) -> None:
    line = Line(base())
    for number, (kind, what) in enumerate(events):
        play(line, kind, what, f"c{number}")
        if kind != "command":
            continue
        state, records, results = dict(line.all_items()), list(line.records), list(line.results)
        play(line, kind, what, f"c{number}")
        assert dict(line.all_items()) == state
        assert line.records == records
        assert line.results in (results, [*results, *results[-1:]])


@given(EVENTS)
def test_rollbacks_in_a_row_never_return_to_a_version(events: list[tuple[str, Any]]) -> None:
    line = Line(base())
    for number, (kind, what) in enumerate(events):
        play(line, kind, what, f"c{number}")
    seen = [line.stable]
    for number in range(MAX_HISTORY + 2):
        result = line.command("rollback", f"back{number}")
        assert result is not None
        if result.status == "refused":
            break
        seen.append(line.stable)
    assert result is not None
    assert result.status == "refused"
    assert len(seen) == len(set(seen))


@given(
    EVENTS, st.lists(st.tuples(st.sampled_from([MODEL_VERSIONS, OPERATOR_COMMANDS]), FOREIGN), max_size=10)
)
def test_foreign_records_of_other_lines_change_nothing(
    events: list[tuple[str, Any]], foreign: list[tuple[Topic, bytes | None]]
) -> None:
    """The decisions of a line are the same with and without records that no service of ours wrote."""
    events = [event for event in events if event[0] != "foreign"]
    alone, mixed = Line(base()), Line(base())
    unreadable = [each for each in foreign if each[1] is None or not each[1].startswith(b"{")]
    for number, (kind, what) in enumerate(events):
        play(alone, kind, what, f"c{number}")
        play(mixed, kind, what, f"c{number}")
        if unreadable:
            play(mixed, "foreign", unreadable[number % len(unreadable)], "")
    assert mixed.records == alone.records
