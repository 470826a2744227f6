"""A canary from its start to its end: what users and commands change, and what they cannot change (I7, I10, I13)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.rollout.core import store
from services.rollout.core.numbering import RolloutNumbering
from services.rollout.core.policy import CanaryPolicy
from shared.records import Record
from shared.stream.write_buffer import WriteBuffer
from shared.topics import FEEDBACK_TALLIES, MODEL_ROLLOUT
from tests.rollout_factories import BASE, Line, base, name, trained

MINUTE = 60_000
POLICY = CanaryPolicy(
    name="canary",
    feedback_users=0,
    dwell_ms=10 * MINUTE,
    settle_ms=MINUTE,
    min_users=20,
    margin=0.2,
    cooldown_ms=60 * MINUTE,
)


def canary_line(policy: CanaryPolicy = POLICY, **version: object) -> Line:
    line = Line(base(), trained(1, through={"0": 5}, **version), policy=policy)  # type: ignore[arg-type]
    line.pass_time(2 * MINUTE)
    return line


def users(seed: int = 0) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"u_{seed}_{number:06d}"


def live(line: Line, count: int, good: dict[str, float], seed: int = 0) -> None:
    """Let `count` new users ask and vote; each is satisfied as often as `good` says for the version that they get."""
    source, people = random.Random(seed), users(seed)
    for _ in range(count):
        user = next(people)
        line.pass_time(1_000)
        line.respond(user)
        line.vote(user, float(source.random() < good[line.version_of(user)]))


def test_passed_version_starts_as_canary_of_a_few_users() -> None:
    record = canary_line().record
    assert (record.action, record.stable.version, record.share) == ("canary", BASE, 0.05)
    assert record.canary is not None and record.canary.version == name(1)


def test_version_of_too_few_users_takes_over_at_once() -> None:
    line = Line(base(), trained(1, through={"0": 5}), policy=replace(POLICY, feedback_users=2))
    assert (line.record.action, line.stable) == ("promote", name(1))
    assert "feedback of 1 users, fewer than 2" in line.record.reason
    enough = Line(base(), trained(1, through={"0": 5}), policy=replace(POLICY, feedback_users=1))
    assert enough.record.action == "canary"


def test_good_canary_goes_from_step_to_step_and_takes_over() -> None:
    line = canary_line()
    live(line, 3_000, {BASE: 0.7, name(1): 0.8})
    assert [(r.action, r.share) for r in line.records] == [
        ("adopt_base", 0.0), ("canary", 0.05), ("canary", 0.25), ("promote", 0.0),
    ]  # fmt: skip
    assert (line.stable, line.record.previous) == (name(1), base().ref)
    test = line.record.test
    assert test is not None and test.promotion_p <= 0.05 and test.canary.users > 20
    assert "not worse" in line.record.reason


def test_harmful_canary_is_rolled_back_and_stays_away() -> None:
    line = canary_line()
    live(line, 4_000, {BASE: 0.8, name(1): 0.3})
    assert (line.record.action, line.record.canary, line.stable) == ("rollback", None, BASE)
    assert "worse" in line.record.reason and line.record.paused
    assert line.was_rolled_back(name(1))
    test = line.record.test
    assert test is not None and test.harm_p <= test.harm_alpha and test.canary.users < 200
    seq = line.record.seq
    line.publish(trained(1, gate=2, through={"0": 5}))
    line.publish(trained(2, through={"0": 5}))
    assert line.record.canary is None and line.stable == BASE, "the same data is paused"
    assert line.record.seq > seq


def test_after_a_rollback_new_data_waits_for_the_cool_down() -> None:
    line = canary_line()
    line.command("rollback", leaving=name(1))
    line.publish(trained(2, through={"0": 9}))
    assert line.record.canary is None and line.record.waiting == name(2)
    line.pass_time(30 * MINUTE)
    line.respond("u_1")
    assert line.record.canary is None
    line.pass_time(31 * MINUTE)
    line.respond("u_1")
    assert line.record.canary is not None and line.record.canary.version == name(2)


def test_one_user_counts_once_however_often_they_vote() -> None:
    line = canary_line()
    victim = next(u for u in users() if line.version_of(u) == name(1))
    for number in range(300):
        line.vote(victim, 0.0, partition=number % 6)
    line.vote(victim, 1.0)
    trial = line.trial()
    assert trial is not None and trial.canary_arm.votes == (1, 0, 0, 0, 0)
    assert line.record.action == "canary"


def test_votes_that_say_nothing_about_the_step_are_ignored() -> None:
    line = canary_line()
    of_canary = next(u for u in users() if line.version_of(u) == name(1))
    of_stable = next(u for u in users() if line.version_of(u) == BASE)
    line.vote(of_stable, 0.0, at_ms=line.now_ms - 3 * MINUTE)  # on a response before the canary
    line.vote(of_canary, 0.0, version=BASE)  # on a version that the user is not assigned to
    line.vote(of_stable, 0.0, version=name(1))
    line.vote(of_stable, 0.0, version=name(7))  # an unknown version
    line.feed(FEEDBACK_TALLIES.name, None)
    trial = line.trial()
    assert trial is not None
    assert sum(trial.canary_arm.votes) + sum(trial.stable_arm.votes) == 0


def test_users_of_an_earlier_step_do_not_count_again() -> None:
    line = canary_line()
    early = next(u for u in users() if line.version_of(u) == name(1))
    live(line, 800, {BASE: 0.7, name(1): 0.7})
    assert line.record.share == 0.25
    line.pass_time(2 * MINUTE)
    before = line.trial()
    line.vote(early, 0.0)
    line.respond(early)
    after = line.trial()
    assert before is not None and after is not None
    assert after.canary_arm == before.canary_arm
    assert after.canary_part == pytest.approx(0.2 / 0.95)


def test_failing_requests_roll_back_within_a_few_users() -> None:
    line, asked = canary_line(), 0
    for user in users():
        if line.record.canary is None or asked > 60:
            break
        line.pass_time(100)
        asked += line.version_of(user) == name(1)
        line.respond(user, failed=line.version_of(user) == name(1))
    assert line.record.action == "rollback" and asked <= 40
    assert "fail" in line.record.reason


def test_failures_of_one_user_count_as_one() -> None:
    line = canary_line()
    user = next(u for u in users() if line.version_of(u) == name(1))
    for number in range(200):
        line.respond(f"u_stable_{number}", BASE)
        line.respond(user, failed=True)
    trial = line.trial()
    assert trial is not None and trial.canary_arm.failed == (0, 1)
    assert line.record.action == "canary"


def test_slow_canary_is_rolled_back() -> None:
    line, people = canary_line(replace(POLICY, dwell_ms=10**9)), users()
    for _ in range(4_000):
        user = next(people)
        line.pass_time(100)
        line.respond(user, latency_ms=4_000 if line.version_of(user) == name(1) else 400)
    assert line.record.action == "rollback" and "slow" in line.record.reason


def test_wrong_sample_ratio_holds_until_resume() -> None:
    line, people = canary_line(), users()
    for _ in range(600):  # replicas that do not serve the canary
        user = next(people)
        line.pass_time(1_000)
        line.respond(user, version=BASE)
        line.vote(user, 1.0, version=BASE)
    assert line.record.action == "hold" and "sample ratio" in line.record.reason
    assert line.record.canary is not None and line.record.share == 0.05
    holds = sum(r.action == "hold" for r in line.records)
    live(line, 500, {BASE: 0.7, name(1): 0.9}, seed=4)
    assert sum(r.action == "hold" for r in line.records) == holds == 1
    line.command("resume", "c2")
    trial = line.trial()
    assert trial is not None and (trial.held, trial.stable_arm.seen, trial.earlier_share) == ("", 0, 0.0)
    line.pass_time(2 * MINUTE)
    live(line, 800, {BASE: 0.7, name(1): 0.9}, seed=5)
    assert line.record.share == 0.25


def test_inconclusive_canary_is_paused_with_what_is_missing() -> None:
    line = canary_line(replace(POLICY, deadline_ms=30 * MINUTE))
    live(line, 100, {BASE: 0.7, name(1): 0.7})
    line.pass_time(31 * MINUTE)
    line.respond("u_late")
    assert (line.record.action, line.record.paused, line.record.share) == ("pause", True, 0.05)
    assert "more users with feedback" in line.record.reason and "promote" in line.record.reason
    line.command("resume", "c2")
    live(line, 700, {BASE: 0.7, name(1): 0.8}, seed=3)
    assert line.record.share == 0.25, "after resume it goes on with what was counted"


def test_paused_canary_is_still_rolled_back() -> None:
    line = canary_line()
    line.command("pause")
    assert line.record.paused and line.record.share == 0.05
    live(line, 3_000, {BASE: 0.9, name(1): 0.2})
    assert line.record.action == "rollback"
    assert line.state().excluded is None, "a person's pause lasts until resume"


def test_paused_canary_goes_no_further_until_resume() -> None:
    line = canary_line()
    line.command("pause")
    live(line, 900, {BASE: 0.7, name(1): 0.9})
    assert (line.record.action, line.record.share) == ("pause", 0.05)
    assert "resume" in line.statuses[-1].test.waits_for[0]
    line.command("resume", "c2")
    line.pass_time(20_000)
    line.respond("u_any")
    assert (line.record.action, line.record.share) == ("canary", 0.25)


def test_commands_win_over_the_canary() -> None:
    for kind, fields, expected in (
        ("promote", {"version": name(1)}, (name(1), None, False)),
        ("pin", {"version": BASE}, (BASE, None, True)),
        ("rollback", {}, (BASE, None, True)),
        ("rollback", {"leaving": name(1)}, (BASE, None, True)),
    ):
        line = canary_line()
        result = line.command(kind, **fields)
        assert result is not None and result.status == "done", kind
        assert (line.stable, line.record.canary, line.record.paused) == expected, kind
        live(line, 50, {BASE: 0.0, name(1): 0.0}, seed=2)
        assert line.record.command_id == "c1", kind


def test_canary_that_a_pin_ended_is_tried_again_after_resume() -> None:
    line = canary_line()
    line.command("pin", version=BASE)
    assert line.record.waiting == name(1)
    line.command("resume", "c2")
    assert line.record.canary is not None and line.record.canary.version == name(1)


def test_newer_version_waits_for_the_canary_and_is_gated_again() -> None:
    line = canary_line()
    line.publish(trained(2, through={"0": 9}))
    assert line.record.action == "hold" and line.record.canary is not None
    assert line.record.canary.version == name(1) and line.record.waiting == name(2)
    live(line, 3_000, {BASE: 0.6, name(1): 0.8})
    assert line.stable == name(1)
    assert [request.version for request in line.requests] == [name(2)]


def test_canary_that_fails_a_later_gate_ends() -> None:
    line = canary_line()
    line.publish(trained(1, "failed", gate=2))
    assert (line.record.canary, line.record.action) == (None, "hold")
    line.publish(trained(1, "passed", gate=1))
    assert line.record.canary is None


def test_users_of_a_finished_canary_leave_the_state() -> None:
    line = canary_line()
    live(line, 600, {BASE: 0.7, name(1): 0.7})
    assert sum(key.startswith(b"u/") for key in line.all_keys()) > 40
    line.command("promote", version=name(1))
    for _ in range(20):
        line.respond("u_any")
    assert not [key for key in line.all_keys() if key.startswith((b"u/", b"k/"))]


def test_lost_state_begins_the_step_again() -> None:
    line = canary_line()
    live(line, 100, {BASE: 0.7, name(1): 0.7})
    found = [Record(MODEL_ROLLOUT.name, 0, 0, 0, b"", line.record.to_json())]
    again = canary_line()
    again.store = type(again.store)()
    again.store.apply(RolloutNumbering().writes(found, {}), 0)
    again.records = [line.record]
    for version in (base(), trained(1)):
        again.publish(version)
    again.pass_time(20 * MINUTE)
    live(again, 800, {BASE: 0.7, name(1): 0.7}, seed=8)
    assert again.record.share == 0.25


def test_unreadable_counts_begin_the_step_again() -> None:
    line = canary_line()
    line.store.apply({b"k/assistant": b"{not json"}, 0)
    line.respond("u_1")
    trial = line.trial()
    assert trial is not None and trial.canary == name(1)
    line.store.apply({b"u/assistant/" + trial.run.to_bytes(8, "big") + b"u_2": b"?"}, 0)
    line.pass_time(2 * MINUTE)
    line.vote("u_2", 1.0)
    assert line.trial() is not None


def test_progress_is_published_with_intervals_over_time() -> None:
    line = canary_line()
    live(line, 200, {BASE: 0.7, name(1): 0.7})
    newest = line.statuses[-1]
    assert newest.test.stable.users > 150 and len(newest.points) > 5
    assert newest.points[-1].stable_high - newest.points[-1].stable_low < 0.3
    assert any("more users with feedback on the canary" in text for text in newest.test.waits_for)
    live(line, 2_000, {BASE: 0.5, name(1): 0.5}, seed=9)
    assert len(line.statuses[-1].points) <= 60


def test_every_decision_has_the_next_number_and_figures() -> None:
    line = canary_line()
    live(line, 3_000, {BASE: 0.6, name(1): 0.8})
    assert [record.seq for record in line.records] == list(range(1, len(line.records) + 1))
    assert all(record.test is not None for record in line.records[2:])


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("vote"), st.integers(0, 40), st.sampled_from([0.0, 0.5, 1.0])),
        st.tuples(st.just("respond"), st.integers(0, 40), st.booleans()),
        st.tuples(st.just("time"), st.integers(0, 40), st.just(0)),
        st.tuples(st.sampled_from(["pause", "resume", "rollback"]), st.just(0), st.just(0)),
        st.tuples(st.sampled_from(["promote", "pin"]), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("publish"), st.integers(1, 3), st.sampled_from(["passed", "failed"])),
    ),
    max_size=60,
)


@settings(max_examples=120, deadline=None)
@given(events=EVENTS)
def test_any_history_keeps_seq_growing_and_canaries_passed(events: list[tuple[str, int, object]]) -> None:
    line = canary_line(replace(POLICY, min_users=1, dwell_ms=MINUTE, settle_ms=0, deadline_ms=20 * MINUTE))
    gates = {1: 1, 2: 0, 3: 0}
    for place, (what, number, value) in enumerate(events):
        if what == "vote":
            line.vote(f"u_{number}", float(value))  # type: ignore[arg-type]
        elif what == "respond":
            line.respond(f"u_{number}", failed=bool(value))
        elif what == "time":
            line.pass_time(number * MINUTE)
        elif what == "publish":
            gates[number] += 1
            line.publish(
                trained(number, str(value), line.stable, gate=gates[number], through={"0": 5 + number})
            )
        else:
            version = {"version": name(number) if number else BASE} if what in ("promote", "pin") else {}
            line.command(what, f"c{place}", **version)
        buffer = WriteBuffer(line.store, 1_000_000)
        canary = line.record.canary
        known = None if canary is None else store.lookup(buffer, "assistant")(canary.version)
        assert canary is None or (known is not None and known.verdict == "passed" and not known.rolled_back)
        assert canary is None or canary.version != line.stable
        watch = store.read_watch(buffer, "assistant")
        assert (canary is not None) == (watch is not None and watch.trial is not None)
    assert [record.seq for record in line.records] == list(range(1, len(line.records) + 1))
