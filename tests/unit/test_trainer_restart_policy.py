"""What follows when a run's process ends: again, later, in smaller pieces, or not."""

from __future__ import annotations

import pytest

from services.trainer.worker.restart_policy import (
    KILLS_BEFORE_HALVING,
    LONGEST_WAIT_S,
    MAX_KILLS,
    MAX_ERRORS,
    Attempts,
    EndCause,
    RestartDecision,
    record_start,
    decide,
    backoff_s,
)

HERE = Attempts(place="training, step 4")


def dying(
    times: int, *, smaller: bool, by_kernel: bool = False, start: Attempts = HERE
) -> list[RestartDecision]:
    tried, found = start, []
    for _ in range(times):
        tried, then = decide(record_start(tried), "killed", errors=0, by_kernel=by_kernel, smaller=smaller)
        found.append(then)
    return found


def test_one_kill_is_nothing_and_it_goes_on_at_once() -> None:
    assert dying(1, smaller=True) == [RestartDecision(wait_s=0.0)]


def test_several_kills_at_one_place_are_taken_for_a_lack_of_memory() -> None:
    halved = [then.halve for then in dying(7, smaller=True)]
    assert halved == [False, False, True, False, False, True, False]


def test_a_kill_that_the_kernel_counts_as_one_for_memory_halves_at_once() -> None:
    assert dying(1, smaller=True, by_kernel=True)[0].halve


def test_what_is_killed_on_and_on_ends_with_a_reason_that_says_what_to_do() -> None:
    *before, last = dying(MAX_KILLS, smaller=False)
    assert all(then.failed is None for then in before)
    assert last.failed is not None
    assert f"killed {MAX_KILLS} times" in last.failed
    assert "LOOPWRIGHT_TRAINER_BATCH_SIZE" in last.failed


def test_with_pieces_of_one_row_and_a_kernel_that_says_so_it_ends_sooner() -> None:
    *before, last = dying(KILLS_BEFORE_HALVING, smaller=False, by_kernel=True)
    assert all(then.failed is None for then in before)
    assert last.failed is not None
    assert "for want of memory" in last.failed


def test_who_comes_further_begins_to_count_anew() -> None:
    tried = HERE
    for step in range(5 * MAX_KILLS):
        tried = tried.at(f"training, step {step}")
        tried, then = decide(record_start(tried), "killed", errors=0, by_kernel=False, smaller=True)
        assert then == RestartDecision(wait_s=0.0)


def test_the_wait_grows_to_a_minute_and_no_further() -> None:
    waits = [backoff_s(times) for times in range(1, 12)]
    assert waits[:4] == [0.0, 2.0, 4.0, 8.0]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_S


@pytest.mark.parametrize("end", ["disk", "memory", "stopped"])
def test_a_full_disk_a_lack_of_memory_and_an_ordered_end_are_no_deaths_and_never_fail(end: EndCause) -> None:
    tried = HERE
    for _ in range(50):
        tried, then = decide(record_start(tried), end, errors=0, by_kernel=True, smaller=False)
        assert then.failed is None
        assert not then.halve
    assert (tried.deaths, tried.under_way) == (0, False)


def test_errors_of_the_program_end_the_run_after_three() -> None:
    found = [
        decide(HERE, "error", errors=errors, by_kernel=False, smaller=True)[1].failed
        for errors in range(1, MAX_ERRORS + 1)
    ]
    assert found == [None, None, f"tried {MAX_ERRORS} times"]


def test_counts_survive_on_the_disk_also_from_an_older_or_newer_release() -> None:
    tried, _ = decide(record_start(HERE), "killed", errors=0, by_kernel=False, smaller=True)
    assert Attempts.of(tried.parts() | {"of_a_newer_release": 1}) == tried
    assert Attempts.of({}) == Attempts()
