from __future__ import annotations

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
    ("waiting", "hours", "starts"),
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
def test_a_run_starts_with_enough_from_enough_users_or_with_fewer_that_waited(
    waiting: NewData, hours: int, starts: bool
) -> None:
    assert decide(waiting, RULE, hours * HOUR).start is starts


def test_a_command_starts_with_anything_usable_and_is_refused_with_nothing() -> None:
    assert decide(NewData(1, 1, 0), RULE, 0, commanded=True).start
    refused = decide(NewData(0, 0), RULE, 0, commanded=True)
    assert not refused.start
    assert "nothing usable" in refused.reason


@pytest.mark.parametrize(
    ("waiting", "hours", "reason"),
    [
        (
            NewData(12, 3, 0),
            0,
            "12 usable new examples from 3 users; a run needs 200 from 20: waits for 188 more examples and 17 more "
            "users, or for 38 more and until 1970-01-02 00:00 UTC: 50 will do once one has waited 24 h",
        ),
        (
            NewData(60, 20, 0),
            1,
            "60 usable new examples from 20 users; a run needs 200 from 20: waits for 140 more examples, or until "
            "1970-01-02 00:00 UTC: 50 will do once one has waited 24 h",
        ),
        (
            NewData(45, 25, 0),
            30,
            "45 usable new examples from 25 users; a run needs 200 from 20: waits for 155 more examples, or for 5 "
            "more: 50 will do once one has waited 24 h",
        ),
        (
            NewData(0, 0),
            0,
            "nothing usable is new since the last run; a run needs 200 from 20: waits for 200 more examples and 20 "
            "more users",
        ),
    ],
)
def test_the_reason_names_what_is_waited_for(waiting: NewData, hours: int, reason: str) -> None:
    decision = decide(waiting, RULE, hours * HOUR)
    assert (decision.start, decision.reason) == (False, reason)


# --- quiet hours and the interval -------------------------------------------------------------------------------

ENOUGH = NewData(200, 20, 0)
NIGHT = RULE.model_copy(update={"quiet": QuietHours(time(22), time(6)), "time_zone": "Europe/Berlin"})
APART = RULE.model_copy(update={"interval_s": 6 * 3600.0})


def at(told: str, zone: str = "Europe/Berlin") -> int:
    return round(datetime.fromisoformat(told).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


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
def test_no_run_begins_by_itself_in_quiet_hours_by_the_clock_of_their_place(
    moment: str, starts: bool
) -> None:
    assert decide(ENOUGH, NIGHT, at(moment)).start is starts


def test_the_reason_says_when_quiet_hours_end() -> None:
    assert decide(ENOUGH, NIGHT, at("2026-03-03 23:30")).reason == (
        "200 usable new examples from 20 users; waits for the end of quiet hours, 2026-03-04 06:00 Europe/Berlin"
    )
    assert "2026-03-04 06:00" in decide(ENOUGH, NIGHT, at("2026-03-04 00:30")).reason


@pytest.mark.parametrize(("hours", "starts"), [(0, False), (5, False), (6, True)])
def test_no_run_begins_by_itself_within_the_interval_after_the_last(hours: int, starts: bool) -> None:
    began = at("2026-03-04 06:00", "UTC")
    decision = decide(ENOUGH, APART, began + hours * HOUR, began_ms=began)
    assert decision.start is starts
    assert (
        "waits until 2026-03-04 12:00 UTC: the last run began less than 6 h ago" in decision.reason
    ) is not starts


def test_the_first_run_waits_for_no_interval() -> None:
    assert decide(ENOUGH, APART, 0).start


def test_a_refusal_names_everything_that_is_waited_for() -> None:
    both = NIGHT.model_copy(update={"interval_s": 6 * 3600.0})
    now = at("2026-03-04 01:00")
    reason = decide(NewData(12, 3, now), both, now, began_ms=now - HOUR).reason
    assert all(part in reason for part in ("188 more examples", "quiet hours", "the last run began"))


@pytest.mark.parametrize("how", [{"commanded": True}, {"anew": True}])
def test_a_command_overrides_quiet_hours_and_interval_and_not_the_lack_of_data(how: dict[str, bool]) -> None:
    both = NIGHT.model_copy(update={"interval_s": 6 * 3600.0})
    now = at("2026-03-04 01:00")
    assert decide(NewData(1, 1, now), both, now, began_ms=now, **how).start
    refused = decide(NewData(0, 0), both, now, began_ms=now, **how)
    assert not refused.start
    assert "nothing usable" in refused.reason
    assert "quiet" not in decide(NewData(0, 0), both, now, began_ms=now, commanded=True).reason


CLOCK = st.times().map(lambda told: told.replace(second=0, microsecond=0))


@given(start=CLOCK, end=CLOCK, moment=st.datetimes(timezones=st.just(UTC)))
def test_quiet_hours_and_the_rest_of_the_day_take_turns(start: time, end: time, moment: datetime) -> None:
    if start == end:
        return
    quiet, rest = QuietHours(start, end), QuietHours(end, start)
    assert quiet.holds(moment.time()) is not rest.holds(moment.time())


def test_settings_say_which_hours_or_zone_they_do_not_know() -> None:
    told = TrainerSettings(
        quiet_hours="22:00-06:00", time_zone="Europe/Berlin", min_interval_hours=6
    ).thresholds()
    assert (str(told.quiet), told.time_zone, told.interval_s) == ("22:00-06:00", "Europe/Berlin", 6 * 3600)
    assert TrainerSettings().thresholds().quiet is None
    for fields in (
        {"quiet_hours": "ten to six"},
        {"quiet_hours": "06:00-06:00"},
        {"time_zone": "Mars/Olympus"},
    ):
        with pytest.raises(ValueError, match="|".join(("no hours", "no hour or all", "no time zone"))):
            TrainerSettings.model_validate(fields)
