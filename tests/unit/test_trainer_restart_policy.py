"""Restart policy: restart at once, later, with a smaller micro-batch, or not at all."""

from __future__ import annotations

import pytest

from services.trainer.worker.restart_policy import (
    KILLS_BEFORE_HALVING,
    MAX_ERRORS,
    MAX_KILLS,
    MAX_STARVED,
    MAX_WAIT_S,
    STARVED_WAIT_S,
    Attempts,
    EndCause,
    RestartDecision,
    backoff_s,
    decide,
    record_start,
)

AT_STEP_4 = Attempts(position="training, step 4")


def decisions_after_kills(
    kills: int, *, can_halve: bool, oom_killed: bool = False, attempts: Attempts = AT_STEP_4
) -> list[RestartDecision]:
    """Return the decision after each of so many kills at one position."""
    decisions = []
    for _ in range(kills):
        attempts, decision = decide(
            record_start(attempts), "killed", errors=0, oom_killed=oom_killed, can_halve=can_halve
        )
        decisions.append(decision)
    return decisions


def test_first_kill_restarts_at_once() -> None:
    assert decisions_after_kills(1, can_halve=True) == [RestartDecision(wait_s=0.0)]


def test_every_third_kill_at_one_position_halves_the_micro_batch() -> None:
    halved = [decision.halve for decision in decisions_after_kills(7, can_halve=True)]
    assert halved == [False, False, True, False, False, True, False]


def test_kill_counted_by_the_kernel_halves_at_once() -> None:
    assert decisions_after_kills(1, can_halve=True, oom_killed=True)[0].halve


def test_repeated_kills_fail_the_run_with_a_remedy() -> None:
    *before, last = decisions_after_kills(MAX_KILLS, can_halve=False)
    assert all(decision.failure is None for decision in before)
    assert last.failure is not None
    assert f"killed {MAX_KILLS} times" in last.failure
    assert "LOOPWRIGHT_TRAINER_MAX_TOKENS" in last.failure


def test_kernel_kills_with_one_row_fail_the_run_sooner() -> None:
    *before, last = decisions_after_kills(KILLS_BEFORE_HALVING, can_halve=False, oom_killed=True)
    assert all(decision.failure is None for decision in before)
    assert last.failure is not None
    assert "because memory ran out" in last.failure


def test_lack_of_memory_for_the_smallest_batches_fails_the_run_after_some_waits() -> None:
    attempts = AT_STEP_4
    decisions = []
    for _ in range(MAX_STARVED):
        attempts, decision = decide(
            record_start(attempts), "starved", errors=0, oom_killed=False, can_halve=False
        )
        decisions.append(decision)
    *before, last = decisions
    assert [(decision.failure, decision.halve) for decision in before] == [(None, False)] * (MAX_STARVED - 1)
    assert min(decision.wait_s for decision in before) >= STARVED_WAIT_S
    assert last.failure is not None
    assert "even with the smallest batches: give the trainer more memory" in last.failure


def test_progress_resets_the_counts() -> None:
    attempts = AT_STEP_4
    for step in range(5 * MAX_KILLS):
        attempts = attempts.at(f"training, step {step}")
        attempts, decision = decide(
            record_start(attempts), "killed", errors=0, oom_killed=False, can_halve=True
        )
        assert decision == RestartDecision(wait_s=0.0)


def test_wait_doubles_up_to_a_minute() -> None:
    waits = [backoff_s(early_ends) for early_ends in range(1, 12)]
    assert waits[:4] == [0.0, 2.0, 4.0, 8.0]
    assert waits == sorted(waits)
    assert waits[-1] == MAX_WAIT_S


@pytest.mark.parametrize("end", ["disk", "memory", "stopped"])
def test_full_disk_low_memory_and_stops_never_fail_a_run(end: EndCause) -> None:
    attempts = AT_STEP_4
    for _ in range(50):
        attempts, decision = decide(record_start(attempts), end, errors=0, oom_killed=True, can_halve=False)
        assert decision.failure is None
        assert not decision.halve
    assert (attempts.kills, attempts.running) == (0, False)


def test_third_error_fails_the_run() -> None:
    failures = [
        decide(AT_STEP_4, "error", errors=errors, oom_killed=False, can_halve=True)[1].failure
        for errors in range(1, MAX_ERRORS + 1)
    ]
    assert failures == [None, None, f"tried {MAX_ERRORS} times"]


def test_counts_survive_a_restart() -> None:
    attempts, _ = decide(record_start(AT_STEP_4), "killed", errors=0, oom_killed=False, can_halve=True)
    assert Attempts.from_json(attempts.to_json()) == attempts
