"""When a run starts: thresholds, quiet hours, interval, commands."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.core.quiet_hours import QuietHours
from services.trainer.core.recipe import Thresholds
from services.trainer.core.trigger import NewData, decide
from services.trainer.settings import TrainerSettings

HOUR = 3_600_000
RULE = Thresholds(examples=200, users=20, aged_examples=50, age_s=24 * 3600.0)


@pytest.mark.parametrize(
    ("new", "hours", "starts"),
    [
        (NewData(200, 20, 0), 1, True),
        (NewData(199, 60, 0), 1, False),
        (NewData(900, 19, 0), 1, False),
        (NewData(50, 3, 0), 24, True),
        (NewData(49, 40, 0), 90, False),
        (NewData(50, 3, 0), 23, False),
        (NewData(0, 0, None), 90, False),
    ],
)
def test_run_starts_with_enough_examples_or_with_fewer_old_ones(
    new: NewData, hours: int, starts: bool
) -> None:
    assert decide(new, RULE, hours * HOUR).start is starts


def test_command_needs_one_usable_example() -> None:
    assert decide(NewData(1, 1, 0), RULE, 0, commanded=True).start
    refused = decide(NewData(0, 0), RULE, 0, commanded=True)
    assert not refused.start
    assert "nothing usable" in refused.reason


@pytest.mark.parametrize(
    ("new", "hours", "reason"),
    [
        (
            NewData(12, 3, 0),
            0,
            "12 usable new examples from 3 users; a run needs 200 from 20: waiting for 188 more examples and 17 more "
            "users, or for 38 more and until 1970-01-02 00:00 UTC: 50 suffice once one has waited 24 h",
        ),
        (
            NewData(60, 20, 0),
            1,
            "60 usable new examples from 20 users; a run needs 200 from 20: waiting for 140 more examples, or until "
            "1970-01-02 00:00 UTC: 50 suffice once one has waited 24 h",
        ),
        (
            NewData(45, 25, 0),
            30,
            "45 usable new examples from 25 users; a run needs 200 from 20: waiting for 155 more examples, or for 5 "
            "more: 50 suffice once one has waited 24 h",
        ),
        (
            NewData(0, 0),
            0,
            "nothing usable is new since the last run; a run needs 200 from 20: waiting for 200 more examples and 20 "
            "more users",
        ),
    ],
)
def test_reason_names_what_is_missing(new: NewData, hours: int, reason: str) -> None:
    decision = decide(new, RULE, hours * HOUR)
    assert (decision.start, decision.reason) == (False, reason)


# --- quiet hours and the interval -------------------------------------------------------------------------------

ENOUGH = NewData(200, 20, 0)
NIGHT = RULE.model_copy(update={"quiet": QuietHours(time(22), time(6)), "time_zone": "Europe/Berlin"})
APART = RULE.model_copy(update={"interval_s": 6 * 3600.0})


def at(moment: str, zone: str = "Europe/Berlin") -> int:
    return round(datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


@pytest.mark.parametrize(
    ("moment", "starts"),
    [
        ("2026-03-03 21:59", True),
        ("2026-03-03 22:00", False),
        ("2026-03-04 05:59", False),
        ("2026-03-04 06:00", True),
        ("2026-07-03 21:59", True),
        ("2026-07-04 05:59", False),
    ],
)
def test_no_run_starts_in_quiet_hours_of_their_time_zone(moment: str, starts: bool) -> None:
    assert decide(ENOUGH, NIGHT, at(moment)).start is starts


def test_reason_gives_the_end_of_quiet_hours() -> None:
    assert decide(ENOUGH, NIGHT, at("2026-03-03 23:30")).reason == (
        "200 usable new examples from 20 users; waiting for the end of quiet hours, 2026-03-04 06:00 Europe/Berlin"
    )
    assert "2026-03-04 06:00" in decide(ENOUGH, NIGHT, at("2026-03-04 00:30")).reason


@pytest.mark.parametrize(("hours", "starts"), [(0, False), (5, False), (6, True)])
def test_no_run_starts_within_the_interval_after_the_last(hours: int, starts: bool) -> None:
    began = at("2026-03-04 06:00", "UTC")
    decision = decide(ENOUGH, APART, began + hours * HOUR, last_run_ms=began)
    assert decision.start is starts
    assert (
        "waiting until 2026-03-04 12:00 UTC: the last run began less than 6 h ago" in decision.reason
    ) is not starts


def test_first_run_waits_for_no_interval() -> None:
    assert decide(ENOUGH, APART, 0).start


def test_refusal_names_everything_that_is_missing() -> None:
    both = NIGHT.model_copy(update={"interval_s": 6 * 3600.0})
    now = at("2026-03-04 01:00")
    reason = decide(NewData(12, 3, now), both, now, last_run_ms=now - HOUR).reason
    assert all(part in reason for part in ("188 more examples", "quiet hours", "the last run began"))


@pytest.mark.parametrize("how", [{"commanded": True}, {"after_erasure": True}])
def test_command_and_erasure_override_times_but_not_missing_data(how: dict[str, bool]) -> None:
    both = NIGHT.model_copy(update={"interval_s": 6 * 3600.0})
    now = at("2026-03-04 01:00")
    assert decide(NewData(1, 1, now), both, now, last_run_ms=now, **how).start
    refused = decide(NewData(0, 0), both, now, last_run_ms=now, **how)
    assert not refused.start
    assert "nothing usable" in refused.reason
    assert "quiet" not in decide(NewData(0, 0), both, now, last_run_ms=now, commanded=True).reason


CLOCK = st.times().map(lambda clock: clock.replace(second=0, microsecond=0))


@given(start=CLOCK, end=CLOCK, moment=st.datetimes(timezones=st.just(UTC)))
def test_quiet_hours_and_their_complement_cover_each_moment_once(
    start: time, end: time, moment: datetime
) -> None:
    if start == end:
        return
    quiet, complement = QuietHours(start, end), QuietHours(end, start)
    assert quiet.contains(moment.time()) is not complement.contains(moment.time())


def test_settings_refuse_invalid_hours_and_zones() -> None:
    found = TrainerSettings(
        quiet_hours="22:00-06:00", time_zone="Europe/Berlin", min_interval_hours=6
    ).thresholds()
    assert (str(found.quiet), found.time_zone, found.interval_s) == (
        "22:00-06:00",
        "Europe/Berlin",
        6 * 3600,
    )
    assert TrainerSettings().thresholds().quiet is None
    for fields in (
        {"quiet_hours": "ten to six"},
        {"quiet_hours": "06:00-06:00"},
        {"time_zone": "Mars/Olympus"},
    ):
        with pytest.raises(ValueError, match=r"expected HH:MM-HH:MM|must differ|unknown time zone"):
            TrainerSettings.model_validate(fields)


# --- what the gate can show -------------------------------------------------------------------------------------


def test_reason_of_a_run_says_what_its_gate_can_show() -> None:
    power = "the gate finds a version that fixes 40 %"
    enough = replace(ENOUGH, gate_items=40, gate_users=9, gate_users_needed=8, gate_power=power)
    rule = RULE.model_copy(update={"gate_items": 30})
    assert decide(enough, rule, 0).reason == f"200 usable new examples from 20 users; {power}"
    assert decide(enough, rule, 0, commanded=True).reason.endswith(f"; {power}")
    assert decide(replace(enough, examples=60), rule, 100 * HOUR).reason.endswith(f"; {power}")


def test_run_waits_for_held_out_users_and_says_so_if_it_is_commanded() -> None:
    few = replace(ENOUGH, gate_items=40, gate_users=7, gate_users_needed=8, gate_power="too small")
    waiting = decide(few, RULE, 0)
    missing = "the gate would have at most 7 held-out users of 8 needed"
    assert (waiting.start, missing in waiting.reason) == (False, True)
    commanded = decide(few, RULE, 0, commanded=True)
    assert (commanded.start, commanded.reason.endswith(missing)) == (True, True)
