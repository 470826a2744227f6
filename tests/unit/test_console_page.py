"""What the page shows, from facts; and that what is drawn can do no harm."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.console.pages import formatting as say
from services.console.pages.page_data import PageData
from services.console.pages.rates import MAX_POINTS, RollingCounters, Sample
from services.console.pages.render import PARTS, render
from services.console.pages.view_model import (
    NO_FEEDBACK,
    NO_KAFKA,
    NO_LETTERS,
    NOT_READ,
    PageView,
    build_view,
)
from shared.events import OutcomeKind

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
BASE, V1 = "assistant@base-00000000", "assistant@v1-11111111"
FIGURE = {
    "name": "wins",
    "n": 61,
    "value": 0.83,
    "low": 0.72,
    "high": 0.9,
    "baseline": 0.03,
    "bound": 0.5,
    "passed": True,
}
COLLECTED = {
    "usable": 118,
    "needed": 200,
    "users": 31,
    "users_needed": 20,
    "held": {"agreement: disputed": 9, "comment: held": 22},
    "heldout": 71,
    "batches": 18,
}
RUN = {
    "run_id": "r-1",
    "stage": "train",
    "step": 40,
    "steps": 160,
    "loss": 1.25,
    "tokens_per_s": 611.4,
    "eta_s": 130,
}


def status(**over: Any) -> dict[str, Any]:
    quiet = {
        "line": "assistant",
        "serving": None,
        "ledger": {},
        "accepted": 0,
        "pending": 0,
        "batches": {"count": 0, "examples": 0},
        "collected": None,
        "run": None,
        "versions": 0,
        "dead_letters": 0,
        "unreadable": 0,
    }
    return quiet | over


def serving(**over: Any) -> dict[str, Any]:
    since = (NOW - timedelta(hours=3)).isoformat()
    plain = {
        "version": V1,
        "seq": 2,
        "since": since,
        "reason": "v1 passed",
        "canary": None,
        "share": 0.0,
        "paused": False,
    }
    return plain | over


def version(name: str = V1, **over: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "version": name,
        "kind": "lora",
        "number": 1,
        "verdict": "passed",
        "reasons": ["won 50 of 61"],
        "gated_against": BASE,
        "figures": [FIGURE],
        "dataset": {"examples": 211, "users": 51},
        "base_model": "SmolLM2",
        "reproducible": True,
        "created_at": NOW.isoformat(),
        "serving": False,
    }
    return plain | over


def facts(shown: dict[str, Any] | None, **over: Any) -> PageData:
    return dataclasses.replace(PageData("assistant", NOW, shown), **over)


def view(shown: dict[str, Any] | None, **over: Any) -> PageView:
    return build_view(facts(shown, **over))


# --- what is said -------------------------------------------------------------------------------------------------


def test_before_the_log_is_read_nothing_is_claimed() -> None:
    shown = view(None)
    assert (shown.headline.text, shown.read) == ("Reading the log", False)
    assert [notice.text for notice in shown.notices] == [NOT_READ]
    parts = render(shown)
    assert "No feedback yet" not in "".join(parts.values())
    assert "None." not in parts["letters"]


def test_an_empty_loop_says_how_it_begins() -> None:
    parts = render(view(status()))
    assert NO_FEEDBACK in parts["events"]
    assert "loopwright send" in parts["events"]
    assert NO_LETTERS in parts["letters"]
    assert view(status()).headline.text == "Waiting for the first feedback"


def test_the_ledger_shows_every_outcome_that_happened_with_its_meaning_and_what_is_pending() -> None:
    shown = view(status(ledger={"batched": 3, "dead": 1, "something_new": 1}, accepted=10, pending=5)).events
    assert [(share.outcome, share.count) for share in shown.ledger] == [
        ("batched", "3"),
        ("dead", "1"),
        ("pending", "5"),
        ("something new", "1"),
    ]
    assert sum(share.share for share in shown.ledger) == pytest.approx(1)
    assert shown.ledger[1].meaning == "could not be read"


def test_every_outcome_has_words() -> None:
    assert set(say.OUTCOMES) == {kind.value for kind in OutcomeKind} | {"pending"}


def test_the_threshold_says_what_is_there_what_is_needed_and_what_is_held_and_why() -> None:
    shown = view(status(collected=COLLECTED)).threshold
    assert shown is not None
    assert [(bar.text, bar.share) for bar in shown.bars] == [("118 of 200", 0.59), ("31, needed 20", 1.0)]
    assert shown.held == (("comment: held", "22"), ("agreement: disputed", "9"))
    assert shown.asides == ("71 kept aside for the gate", "18 batches read")
    assert view(status(collected=COLLECTED)).headline.text == "Collecting: 118 of 200 usable examples"


def test_a_run_tells_stage_steps_loss_speed_and_time_left() -> None:
    shown = view(status(run=RUN), losses=((20, 2.0), (40, 1.25)))
    run = shown.progress
    assert run is not None
    assert (run.stage, run.steps, run.share, run.loss) == ("training", "40 of 160", 0.25, "1.250")
    assert (run.speed, run.left) == ("611", f"2{say.THIN}min")
    assert shown.headline.text == f"A run is training, 2{say.THIN}min left"
    assert "<polyline" in render(shown)["run"]
    assert shown.loop.nodes[3].now == "training 25%"


def test_a_run_of_which_nothing_is_heard_says_so() -> None:
    told = (NOW - timedelta(minutes=5)).isoformat()
    run = view(status(run=RUN | {"updated_at": told})).progress
    assert run is not None
    assert run.silent == f"nothing heard for 5{say.THIN}min"


@pytest.mark.parametrize(
    ("stage", "more", "active", "failed"),
    [
        ("published", {"version": V1}, False, False),
        ("failed", {"reason": "its process ended"}, False, True),
        ("unheard_of", {}, True, False),
    ],
)
def test_a_run_that_ended_is_no_run_under_way(
    stage: str, more: dict[str, Any], active: bool, failed: bool
) -> None:
    shown = view(status(run={"run_id": "r", "stage": stage} | more))
    assert shown.progress is not None
    assert (shown.progress.active, shown.progress.failed) == (active, failed)
    assert shown.headline.text.startswith("A run is") is active
    assert all(word in render(shown)["run"] for word in more.values())


@pytest.mark.parametrize(
    "junk",
    [
        {},
        {"stage": 7},
        {"stage": "train", "step": "x", "steps": 0, "loss": float("nan")},
        {"usable": "1", "needed": 0, "held": 3},
        {"stage": "train", "eta_s": float("inf"), "updated_at": 7},
        {"usable": 1, "needed": 2, "held": {"a": None}, "updated_at": "soon"},
    ],
)
def test_whatever_lies_in_redis_the_page_is_drawn(junk: dict[str, Any]) -> None:
    assert set(render(view(status(run=junk, collected=junk)))) == set(PARTS)


def test_what_serves_says_since_when_and_why() -> None:
    shown = view(status(serving=serving())).serving
    assert shown is not None
    assert (shown.version, shown.since, shown.reason) == (V1, f"3{say.THIN}h ago", "v1 passed")
    assert shown.at == "2026-03-04 09:00 UTC"


def test_canary_and_pause_are_seen_at_once() -> None:
    trying = view(status(serving=serving(canary="assistant@v2-22222222", share=0.05)))
    assert trying.headline.text == "Canary v2 answers 5% of the users"
    assert trying.loop.nodes[4].now == "canary at 5%"
    paused = view(status(serving=serving(paused=True)))
    assert (paused.headline.tone, paused.loop.nodes[4].now) == ("warn", "paused")


def test_versions_show_verdict_and_each_figure_with_interval_baseline_and_n() -> None:
    base = version(BASE, kind="base", verdict=None, figures=[], dataset=None, gated_against=None)
    shown = view(status(), versions=(base, version(serving=True))).versions
    assert [(row.short, row.verdict, row.serving) for row in shown] == [
        ("v1", "passed", True),
        ("base", "base", False),
    ]
    (figure,) = shown[0].figures
    told = (figure.name, figure.value, figure.interval, figure.baseline, figure.bound, figure.n)
    assert told == ("wins", "0.83", "0.72 to 0.90", "0.03", "0.50", "61")
    assert shown[0].trained_on == "211 examples of 51 users"
    assert "the base is not gated" in render(view(status(), versions=(base,)))["versions"]


def test_figures_that_decide_are_shown_and_the_way_to_all_of_them() -> None:
    told = FIGURE | {"name": "general_kl", "passed": None}
    (row,) = view(status(), versions=(version(figures=[FIGURE, told]),)).versions
    assert [figure.name for figure in row.figures] == [FIGURE["name"].replace("_", " ")]
    (alone,) = view(status(), versions=(version(figures=[told]),)).versions
    assert [figure.name for figure in alone.figures] == ["general kl"]
    drawn = render(view(status(), versions=(version(figures=[FIGURE]),)))["versions"]
    assert f"loopwright gate {row.version}" in drawn


def test_a_figure_that_was_not_measured_is_a_dash_and_no_mark() -> None:
    bare = dict.fromkeys(("value", "low", "high", "baseline", "bound", "passed"))
    shown = view(status(), versions=(version(figures=[FIGURE | bare]),))
    assert shown.versions[0].figures[0].value == "–"
    assert "forest" not in render(shown)["versions"]


def test_figures_beyond_one_are_drawn_inside_their_own_axis() -> None:
    wide = FIGURE | {"value": 18.2, "low": 17.1, "high": 19.4, "baseline": 17.9, "bound": 20.0}
    spots = view(status(), versions=(version(figures=[wide]),)).versions[0].figures[0].forest
    assert all(0 <= spot <= 1 for spot in dataclasses.astuple(spots))
    assert spots.low < spots.baseline < spots.value < spots.high < spots.bound  # type: ignore[operator]


def test_old_versions_make_room_but_what_serves_stays() -> None:
    many = tuple(version(f"assistant@v{n}-11111111", number=n, serving=n == 1) for n in range(1, 15))
    shown = view(status(), versions=many)
    assert [row.short for row in shown.versions] == [f"v{n}" for n in range(14, 4, -1)] + ["v1"]
    assert shown.older_versions == 3


def test_dead_letters_say_why_and_from_where() -> None:
    letter = {
        "topic": "feedback.events",
        "code": "malformed",
        "message": "not JSON",
        "service": "processor",
        "at": NOW.isoformat(),
    }
    drawn = render(view(status(dead_letters=2), letters=(letter,)))["letters"]
    assert all(
        word in drawn for word in ("2 dead letters", "malformed", "feedback.events", "not JSON", "processor")
    )


def test_kafka_away_is_told_and_unknown_is_not_nought() -> None:
    shown = view(status(accepted=None, pending=None))
    assert [notice.text for notice in shown.notices] == [NO_KAFKA]
    assert (shown.events.accepted, shown.events.pending) == ("–", "–")


def test_the_drawing_has_a_count_on_every_arrow_and_tells_itself_in_words() -> None:
    shown = view(
        status(accepted=12345, pending=7, batches={"count": 18, "examples": 900}, serving=serving()),
        versions=(version(), version("assistant@v2-22222222", verdict="failed")),
        chats=23100,
        moving=frozenset({"accepted"}),
    ).loop
    thin = say.THIN
    assert [arrow.count for arrow in shown.arrows] == [
        f"23{thin}100",
        f"12{thin}345",
        "18",
        "1 of 2",
        "no. 2",
    ]
    assert [arrow.moving for arrow in shown.arrows] == [False, True, False, False, False]
    drawn = render(view(status(accepted=12345, pending=7)))["loop"]
    assert all(f">{name}<" in drawn for name in ("inference", "feedback", "processor", "trainer", "rollout"))
    assert "inference: v1 serves" in shown.told


def test_what_stands_still_is_drawn_the_same_again() -> None:
    """Otherwise every page would be redrawn every second, and a selection or a focus be lost."""
    known = facts(
        status(run=RUN, collected=COLLECTED, serving=serving(), ledger={"batched": 3}, accepted=3),
        versions=(version(),),
    )
    later = dataclasses.replace(known, now=NOW + timedelta(seconds=20))
    assert render(build_view(known)) == render(build_view(later))


# --- what could do harm -------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"


def places() -> Iterator[tuple[str, PageData]]:
    letter = dict.fromkeys(("topic", "code", "message", "service"), EVIL) | {"at": NOW.isoformat()}
    decided = {"seq": 1, "action": EVIL, "stable": {"version": EVIL}, "reason": EVIL, "decided_at": EVIL}
    evil_run = RUN | {"stage": EVIL, "run_id": EVIL, "version": EVIL, "reason": EVIL}
    yield "letters", facts(status(dead_letters=1), letters=(letter,))
    yield "rollout", facts(status(), rollout=(decided,))
    yield "serving", facts(status(serving=serving(reason=EVIL, version=EVIL, canary=EVIL)))
    yield "run", facts(status(run=evil_run))
    yield "threshold", facts(status(collected=COLLECTED | {"held": {EVIL: 3}}))
    yield "events", facts(status(ledger={EVIL: 1}))
    yield (
        "versions",
        facts(status(), versions=(version(EVIL, reasons=[EVIL], figures=[FIGURE | {"name": EVIL}]),)),
    )


@pytest.mark.parametrize(("part", "known"), list(places()), ids=lambda value: str(value)[:12])
def test_text_from_anywhere_is_text_and_never_markup(part: str, known: PageData) -> None:
    drawn = render(build_view(known))
    assert "alert(1)" in drawn[part]
    assert "{{ 7 * 7 }}" in drawn[part]
    for html in drawn.values():
        assert not re.search(r"<(script|img)|onerror=alert\(1\)>", html)


# --- what is remembered -------------------------------------------------------------------------------------------


def test_the_rate_is_of_the_last_minute_and_waits_until_there_is_something_to_tell() -> None:
    history = RollingCounters()
    for second in range(121):
        history.add(Sample(second * 1000, {"accepted": second * 2 if second > 60 else 0}))
        if second == 3:
            assert history.per_minute("accepted") is None
        if second == 60:
            assert history.per_minute("accepted") == 0
    assert history.per_minute("accepted") == 240
    assert len(history.samples) <= 91


def test_an_unknown_count_is_left_out_of_the_rate() -> None:
    history = RollingCounters()
    for second, count in enumerate([10, None, None, None, None, None, 16]):
        history.add(Sample(second * 1000, {"accepted": count}))
    assert history.per_minute("accepted") == 60


def test_an_arrow_moves_while_its_count_grows() -> None:
    history = RollingCounters()
    for second, count in enumerate([1, 1, 2, 2, 2, 2, 2, 2]):
        history.add(Sample(second * 1000, {"accepted": count, "seq": 1}))
        moving = history.moving()
        assert ("accepted" in moving) is (2 <= second <= 5)
        assert "seq" not in moving


def test_the_loss_is_of_one_run_goes_back_with_it_and_stays_bounded() -> None:
    history = RollingCounters()
    history.follow({"run_id": "a", "step": 1, "loss": 9.0})
    for step in range(1, 2000):
        history.follow({"run_id": "b", "step": step, "loss": 1 / step})
        history.follow({"run_id": "b", "step": step, "loss": 1 / step})
    steps = [step for step, _ in history.losses]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1], len(steps) <= MAX_POINTS) == (1, 1999, True)
    history.follow({"run_id": "b", "step": 100, "loss": 0.5})
    assert history.losses[-1] == (100, 0.5)
    history.follow(None)
    history.follow({"run_id": "b", "stage": "gate"})
    assert history.losses[-1] == (100, 0.5)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "–"),
        (0, "0"),
        (12345, f"12{say.THIN}345"),
        (0.6171, "0.617"),
        (1e6, f"1{say.THIN}000{say.THIN}000"),
    ],
)
def test_numbers_read_easily(value: float | None, told: str) -> None:
    assert say.number(value) == told


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (59, "59 s"), (130, "2 min"), (3 * 3600, "3 h"), (4 * 86400, "4 d")]
)
def test_spans_are_rounded_to_what_matters(seconds: float, told: str) -> None:
    assert say.span(seconds) == told.replace(" ", say.THIN)


def test_an_age_stands_still_for_a_minute() -> None:
    told = [say.ago(NOW, NOW + timedelta(seconds=seconds)) for seconds in range(180)]
    minute = f"{say.THIN}min ago"
    assert told == ["just now"] * 60 + [f"1{minute}"] * 60 + [f"2{minute}"] * 60


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("training", "training"),
        ("gate, candidate: answers", "in the gate, candidate: answers"),
        ("something_new", "something new"),
    ],
)
def test_a_stage_is_told_in_words(stage: str, words: str) -> None:
    shown = view(status(run={"run_id": "r", "stage": stage, "step": 3, "steps": 12}))
    assert shown.headline.text == f"A run is {words}"
    assert f"{words[0].upper()}{words[1:]}</p>" in render(shown)["run"]
