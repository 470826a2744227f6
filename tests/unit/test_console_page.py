"""What the page shows for given data, and that no text from outside becomes markup."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.console.pages import formatting as fmt
from services.console.pages.page_data import PageData
from services.console.pages.rates import MAX_POINTS, LossCurve, RollingCounters, Sample
from services.console.pages.render import PARTS, render
from services.console.pages.view_model import (
    NO_CANARY,
    NO_DEAD_LETTERS,
    NO_FEEDBACK,
    NO_KAFKA,
    READING_LOG,
    PageView,
    build_view,
)
from shared.events import OutcomeKind
from shared.live_status import CollectedStatus, RunProgress
from shared.run_stage import RunStage
from tests.canary_factories import CANARY, canary_status

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
BASE, V1 = "assistant@base-00000000", "assistant@v1-11111111"
METRIC = {
    "name": "wins",
    "n": 61,
    "value": 0.83,
    "low": 0.72,
    "high": 0.9,
    "baseline": 0.03,
    "bound": 0.5,
    "passed": True,
}
COLLECTED = CollectedStatus(
    usable=118,
    needed=200,
    users=31,
    users_needed=20,
    examples=240,
    held={"agreement: disputed": 9, "comment: held": 22},
    batches=18,
    reason="118 of 200 usable examples",
    updated_at=NOW,
)
RUN = RunProgress(
    run_id="r-1",
    stage="training",
    step=40,
    steps=160,
    share=0.25,
    loss=1.25,
    tokens_per_s=611.4,
    eta_s=130,
    updated_at=NOW,
)


def status(**fields: Any) -> dict[str, Any]:
    defaults = {
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
    return defaults | fields


def serving(**fields: Any) -> dict[str, Any]:
    since = (NOW - timedelta(hours=3)).isoformat()
    defaults = {
        "version": V1,
        "seq": 2,
        "since": since,
        "reason": "v1 passed",
        "canary": None,
        "share": 0.0,
        "paused": False,
        "replicas": {"live": 2, "serving": 2, "canary": 2, "refused": None},
    }
    return defaults | fields


def version(name: str = V1, **fields: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "version": name,
        "kind": "lora",
        "number": 1,
        "verdict": "passed",
        "reasons": ["won 50 of 61"],
        "gated_against": BASE,
        "figures": [METRIC],
        "dataset": {"examples": 211, "users": 51},
        "base_model": "SmolLM2",
        "reproducible": True,
        "created_at": NOW.isoformat(),
        "serving": False,
    }
    return defaults | fields


def canary_state(**fields: Any) -> dict[str, Any]:
    status = canary_status()
    return {
        "canary": CANARY,
        "reason": "it passed its gate",
        "waits_for": list(status.test.waits_for),
        "test": status.test.model_dump(mode="json"),
        "points": [point.model_dump(mode="json") for point in status.points],
    } | fields


def page_data(body: dict[str, Any] | None, **fields: Any) -> PageData:
    return dataclasses.replace(PageData("assistant", NOW, body), **fields)


def view(body: dict[str, Any] | None, **fields: Any) -> PageView:
    return build_view(page_data(body, **fields))


def run_progress(**fields: Any) -> RunProgress:
    return RUN.model_copy(update=fields)


# --- what the page says -------------------------------------------------------------------------------------------


def test_page_claims_nothing_before_the_log_has_been_read() -> None:
    page = view(None)
    assert (page.headline.text, page.log_read) == ("Reading the log", False)
    assert [notice.text for notice in page.notices] == [READING_LOG]
    parts = render(page)
    assert "No feedback yet" not in "".join(parts.values())
    assert "No version is serving" not in parts["serving"]
    assert "None." not in parts["dead_letters"]


def test_empty_loop_says_how_to_start() -> None:
    parts = render(view(status()))
    assert NO_FEEDBACK in parts["feedback"]
    assert "loopwright send" in parts["feedback"]
    assert NO_DEAD_LETTERS in parts["dead_letters"]
    assert view(status()).headline.text == "Waiting for the first feedback"


def test_ledger_says_why_events_and_responses_were_refused() -> None:
    page = view(
        status(
            ledger={"refused": 4}, refused={"too_many": 1, "conflict": 3}, refused_responses={"conflict": 2}
        )
    )
    (row,) = page.feedback.ledger
    assert (
        row.meaning
        == "Valid, but not applicable: 3 sent again with other content, 1 over a limit per user or response"
    )
    html = render(page)["feedback"]
    assert "2 recorded responses were refused: 2 sent again with other content." in html


def test_ledger_says_since_when_it_counts() -> None:
    html = render(view(status(ledger={"late": 1}, ledger_since="2026-03-01T00:00:00+00:00")))["feedback"]
    assert "Since 2026-03-01 00:00 UTC" in html


def test_ledger_lists_outcomes_with_their_meaning_and_pending() -> None:
    feedback = view(
        status(ledger={"batched": 3, "dead": 1, "something_new": 1}, accepted=10, pending=5)
    ).feedback
    assert [(row.outcome, row.count) for row in feedback.ledger] == [
        ("batched", "3"),
        ("dead", "1"),
        ("pending", "5"),
        ("something new", "1"),
    ]
    assert sum(row.share for row in feedback.ledger) == pytest.approx(1)
    assert feedback.ledger[1].meaning == "Could not be processed"


def test_every_outcome_has_a_meaning() -> None:
    assert set(fmt.OUTCOMES) == {kind.value for kind in OutcomeKind} | {"pending"}


def test_every_run_stage_has_words() -> None:
    assert set(fmt.STAGES) == set(RunStage)


def test_threshold_shows_usable_needed_and_quarantined_examples() -> None:
    threshold = view(status(), collected=COLLECTED).threshold
    assert threshold is not None
    assert [(bar.text, bar.share) for bar in threshold.bars] == [
        ("118 of 200", 0.59),
        ("31 (20 needed)", 1.0),
    ]
    assert threshold.quarantined == (("comment: held", "22"), ("agreement: disputed", "9"))
    assert threshold.notes == ("18 batches read", "updated just now")
    assert view(status(), collected=COLLECTED).headline.text == "Collecting: 118 of 200 usable examples"


def test_threshold_names_the_device_and_its_problem() -> None:
    device = {
        "device": "GPU NVIDIA H200, 140 GiB",
        "device_problem": "it compiles no kernels: install a C compiler",
    }
    collected = COLLECTED.model_copy(update=device)
    threshold = view(status(), collected=collected).threshold
    assert threshold is not None
    assert "trains on GPU NVIDIA H200, 140 GiB" in threshold.notes
    html = render(build_view(page_data(status(), collected=collected)))["threshold"]
    assert "it compiles no kernels: install a C compiler" in html
    assert "notice" not in render(build_view(page_data(status(), collected=COLLECTED)))["threshold"]


def test_run_shows_stage_steps_loss_speed_and_time_left() -> None:
    page = view(status(), run=RUN, losses=((20, 2.0), (40, 1.25)))
    run = page.run
    assert run is not None
    assert (run.stage_and_task, run.steps, run.share, run.loss) == ("training", "40 of 160", 0.25, "1.250")
    assert (run.speed, run.time_left) == ("611", f"2{fmt.THIN}min")
    assert page.headline.text == f"Run in progress: training, 2{fmt.THIN}min left"
    assert "<polyline" in render(page)["run"]
    assert page.loop.nodes[3].now == "training 25%"


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("training", "training 25%"),
        ("gate, candidate: answers", "in the gate 25%"),
        ("replay", "making replay data"),
    ],
)
def test_trainer_node_leaves_out_what_does_not_fit(stage: str, text: str) -> None:
    page = view(status(), run=run_progress(stage=stage))
    assert page.loop.nodes[3].now == text


def test_run_without_recent_updates_says_so() -> None:
    run = view(status(), run=run_progress(updated_at=NOW - timedelta(minutes=5))).run
    assert run is not None
    assert run.staleness == f"no update for 5{fmt.THIN}min"


@pytest.mark.parametrize(
    ("stage", "fields", "active", "failed"),
    [
        ("published", {"version": V1}, False, False),
        ("failed", {"reason": "its process ended"}, False, True),
        ("unheard_of", {}, True, False),
    ],
)
def test_ended_run_is_not_in_progress(stage: str, fields: dict[str, Any], active: bool, failed: bool) -> None:
    page = view(status(), run=run_progress(stage=stage, **fields))
    assert page.run is not None
    assert (page.run.active, page.run.failed) == (active, failed)
    assert page.headline.text.startswith("Run in progress") is active
    text = render(page)["run"].lower()
    assert all(word.lower() in text for word in fields.values())


@pytest.mark.parametrize(
    "run",
    [
        run_progress(steps=0, step=0, loss=None, tokens_per_s=None, eta_s=None),
        run_progress(step=500, steps=160, eta_s=0),
        run_progress(stage="", run_id=""),
        run_progress(updated_at=NOW + timedelta(days=400)),
    ],
)
def test_page_is_rendered_for_any_live_status(run: RunProgress) -> None:
    collected = COLLECTED.model_copy(update={"needed": 0, "users_needed": 0, "held": {"": 0}})
    assert set(render(view(status(), run=run, collected=collected))) == set(PARTS)


def test_serving_says_since_when_and_why() -> None:
    card = view(status(serving=serving())).serving
    assert card is not None
    assert (card.version, card.age, card.reason) == (V1, f"3{fmt.THIN}h ago", "v1 passed")
    assert card.at == "2026-03-04 09:00 UTC"
    assert card.replicas == "Serving on 2 of 2 replicas."


def test_version_that_no_replica_serves_is_shown_as_ordered() -> None:
    replicas = {"live": 2, "serving": 0, "canary": 0, "refused": "Replica a refuses it: altered."}
    shown = view(status(serving=serving(replicas=replicas, canary="assistant@v2-22222222", share=0.05)))
    assert shown.serving is not None
    assert shown.serving.replicas == (
        "Ordered; none of 2 replicas serves it yet. Replica a refuses it: altered."
    )
    assert "ordered" in (shown.serving.canary or "")
    assert "altered" in render(shown)["serving"]
    silent = view(status(serving=serving(replicas=replicas | {"live": 0}))).serving
    assert silent is not None
    assert "no replica" in silent.replicas


def test_canary_and_pause_are_headlines() -> None:
    canary = view(status(serving=serving(canary="assistant@v2-22222222", share=0.05)))
    assert canary.headline.text == "Canary v2 serves 5% of the users"
    assert canary.loop.nodes[4].now == "canary at 5%"
    paused = view(status(serving=serving(paused=True)))
    assert (paused.headline.tone, paused.loop.nodes[4].now) == ("warn", "paused")


def test_versions_show_verdict_and_metrics_with_interval_and_baseline() -> None:
    base = version(BASE, kind="base", verdict=None, figures=[], dataset=None, gated_against=None)
    rows = view(status(), versions=(base, version(serving=True))).versions
    assert [(row.short, row.verdict, row.serving) for row in rows] == [
        ("v1", "passed", True),
        ("base", "base", False),
    ]
    (metric,) = rows[0].metrics
    cells = (metric.name, metric.value, metric.interval, metric.baseline, metric.bound, metric.n)
    assert cells == ("wins", "0.83", "0.72 to 0.90", "0.03", "0.50", "61")
    assert rows[0].trained_on == "211 examples from 51 users"
    assert "The gate does not evaluate the base" in render(view(status(), versions=(base,)))["versions"]


def test_only_deciding_metrics_are_listed_with_the_command_for_all() -> None:
    undecided = METRIC | {"name": "general_kl", "passed": None}
    (row,) = view(status(), versions=(version(figures=[METRIC, undecided]),)).versions
    assert [metric.name for metric in row.metrics] == ["wins"]
    (row,) = view(status(), versions=(version(figures=[undecided]),)).versions
    assert [metric.name for metric in row.metrics] == ["general kl"]
    html = render(view(status(), versions=(version(figures=[METRIC]),)))["versions"]
    assert f"loopwright gate {row.version}" in html


def test_unmeasured_metric_is_a_dash_without_a_plot() -> None:
    unmeasured = dict.fromkeys(("value", "low", "high", "baseline", "bound", "passed"))
    page = view(status(), versions=(version(figures=[METRIC | unmeasured]),))
    assert page.versions[0].metrics[0].value == "–"
    assert "forest" not in render(page)["versions"]


def test_metric_above_one_has_an_axis_of_its_own() -> None:
    metric = METRIC | {"value": 18.2, "low": 17.1, "high": 19.4, "baseline": 17.9, "bound": 20.0}
    plot = view(status(), versions=(version(figures=[metric]),)).versions[0].metrics[0].plot
    assert all(0 <= position <= 1 for position in dataclasses.astuple(plot))
    assert plot.low < plot.baseline < plot.value < plot.high < plot.bound  # type: ignore[operator]


def test_old_versions_are_left_out_unless_they_serve() -> None:
    many = tuple(version(f"assistant@v{n}-11111111", number=n, serving=n == 1) for n in range(1, 15))
    page = view(status(), versions=many)
    assert [row.short for row in page.versions] == [f"v{n}" for n in range(14, 4, -1)] + ["v1"]
    assert page.older_versions == 3


def test_dead_letters_show_origin_and_error() -> None:
    letter = {
        "topic": "feedback.events",
        "code": "malformed",
        "message": "not JSON",
        "service": "processor",
        "at": NOW.isoformat(),
    }
    html = render(view(status(dead_letters=2), dead_letters=(letter,)))["dead_letters"]
    assert all(
        word in html for word in ("2 dead letters", "malformed", "feedback.events", "not JSON", "processor")
    )


def test_unreachable_kafka_is_a_notice_and_unknown_is_not_zero() -> None:
    page = view(status(accepted=None, pending=None))
    assert [notice.text for notice in page.notices] == [NO_KAFKA]
    assert (page.feedback.accepted, page.feedback.pending) == ("–", "–")


def test_loop_diagram_has_a_count_on_every_arrow_and_a_description() -> None:
    loop = view(
        status(accepted=12345, pending=7, batches={"count": 18, "examples": 900}, serving=serving()),
        versions=(version(), version("assistant@v2-22222222", verdict="failed")),
        responses=23100,
        growing=frozenset({"accepted"}),
    ).loop
    thin = fmt.THIN
    assert [(arrow.count, arrow.unit) for arrow in loop.arrows] == [
        (f"23{thin}100", "responses"),
        (f"12{thin}345", "events"),
        ("18", "batches"),
        ("1 of 2", "passed"),
        ("2", "decisions"),
    ]
    assert [arrow.moving for arrow in loop.arrows] == [False, True, False, False, False]
    html = render(view(status(accepted=12345, pending=7)))["loop"]
    assert all(f">{name}<" in html for name in ("inference", "feedback", "processor", "trainer", "rollout"))
    assert "inference: serving v1" in loop.description


def test_unchanged_data_renders_the_same_html() -> None:
    """Otherwise the page would be redrawn every second, and selection and focus would be lost."""
    data = page_data(
        status(serving=serving(), ledger={"batched": 3}, accepted=3),
        run=RUN,
        collected=COLLECTED,
        versions=(version(),),
    )
    later = dataclasses.replace(data, now=NOW + timedelta(seconds=20))
    assert render(build_view(data)) == render(build_view(later))


# --- text from outside --------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"
REFUSED = {"live": 1, "serving": 0, "canary": 0, "refused": EVIL}


def evil_data() -> Iterator[tuple[str, PageData]]:
    """Yield each part with data that puts `EVIL` into it."""
    letter = dict.fromkeys(("topic", "code", "message", "service"), EVIL) | {"at": NOW.isoformat()}
    decision = {"seq": 1, "action": EVIL, "stable": {"version": EVIL}, "reason": EVIL, "decided_at": EVIL}
    run = run_progress(stage=EVIL, run_id=EVIL, version=EVIL, reason=EVIL)
    evil_version = version(EVIL, reasons=[EVIL], figures=[METRIC | {"name": EVIL}])
    yield "dead_letters", page_data(status(dead_letters=1), dead_letters=(letter,))
    yield "rollout", page_data(status(), rollout=(decision,))
    yield (
        "serving",
        page_data(
            status(
                serving=serving(
                    reason=EVIL,
                    version=EVIL,
                    canary=EVIL,
                    replicas={"live": 1, "serving": 0, "canary": 0, "refused": EVIL},
                )
            )
        ),
    )
    yield "run", page_data(status(), run=run)
    evil_status = {"held": {EVIL: 3}, "device": EVIL, "device_problem": EVIL}
    yield "threshold", page_data(status(), collected=COLLECTED.model_copy(update=evil_status))
    yield "feedback", page_data(status(ledger={EVIL: 1}))
    yield "canary", page_data(status(), rollout_state=canary_state(reason=EVIL, waits_for=[EVIL]))
    yield "versions", page_data(status(), versions=(evil_version,))


@pytest.mark.parametrize(("part", "data"), list(evil_data()), ids=lambda value: str(value)[:12])
def test_text_never_becomes_markup(part: str, data: PageData) -> None:
    parts = render(build_view(data))
    assert "alert(1)" in parts[part]
    assert "{{ 7 * 7 }}" in parts[part]
    for html in parts.values():
        assert not re.search(r"<(script|img)|onerror=alert\(1\)>", html)


def test_canary_card_shows_both_arms_and_what_is_missing() -> None:
    html = render(view(status(), rollout_state=canary_state()))["canary"]
    assert "74% (55% to 88%)" in html and "71% (66% to 76%)" in html
    assert "29 min more in this step" in html
    assert html.count("<polygon") == 2 and "rolled back at 0.02" in html


def test_canary_card_without_a_canary_and_after_one() -> None:
    assert NO_CANARY in render(view(status()))["canary"].replace("&#39;", "'")
    over = canary_state(canary=None, reason="v2 is worse", waits_for=[], points=[])
    html = render(view(status(), rollout_state=over))["canary"]
    assert "Last canary" in html and "v2 is worse" in html and "<polygon" not in html


def test_waiting_version_names_the_canary_as_the_reason() -> None:
    html = render(view(status(serving=serving(canary=CANARY, share=0.05, waiting=V1))))["serving"]
    assert "waits until the canary is decided" in html


# --- rates and curves ---------------------------------------------------------------------------------------------


def test_rate_covers_the_last_minute_once_enough_is_known() -> None:
    counters = RollingCounters()
    for second in range(121):
        counters.add(Sample(second * 1000, {"accepted": second * 2 if second > 60 else 0}))
        if second == 3:
            assert counters.per_minute("accepted") is None
        if second == 60:
            assert counters.per_minute("accepted") == 0
    assert counters.per_minute("accepted") == 240
    assert len(counters.samples) <= 91


def test_unknown_counts_are_left_out_of_the_rate() -> None:
    counters = RollingCounters()
    for second, count in enumerate([10, None, None, None, None, None, 16]):
        counters.add(Sample(second * 1000, {"accepted": count}))
    assert counters.per_minute("accepted") == 60


def test_counter_is_growing_for_some_seconds_after_it_grew() -> None:
    counters = RollingCounters()
    for second, count in enumerate([1, 1, 2, 2, 2, 2, 2, 2]):
        counters.add(Sample(second * 1000, {"accepted": count, "decisions": 1}))
        growing = counters.growing()
        assert ("accepted" in growing) is (2 <= second <= 5)
        assert "decisions" not in growing


def test_loss_curve_follows_one_run_and_stays_bounded() -> None:
    curve = LossCurve()
    curve.add(run_progress(run_id="a", step=1, loss=9.0))
    for step in range(1, 2000):
        curve.add(run_progress(run_id="b", step=step, loss=1 / step))
        curve.add(run_progress(run_id="b", step=step, loss=1 / step))
    steps = [step for step, _ in curve.points]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1], len(steps) <= MAX_POINTS) == (1, 1999, True)
    curve.add(run_progress(run_id="b", step=100, loss=0.5))
    assert curve.points[-1] == (100, 0.5), "a run that resumes from a checkpoint goes back"
    curve.add(None)
    curve.add(run_progress(run_id="b", stage="gate", loss=None))
    assert curve.points[-1] == (100, 0.5)


# --- text for values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (12345, f"12{fmt.THIN}345"),
        (0.6171, "0.617"),
        (1e6, f"1{fmt.THIN}000{fmt.THIN}000"),
    ],
)
def test_numbers_are_grouped_or_rounded(value: float | None, text: str) -> None:
    assert fmt.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (130, "2 min"), (3 * 3600, "3 h"), (4 * 86400, "4 d")]
)
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert fmt.duration(seconds) == text.replace(" ", fmt.THIN)


def test_age_changes_once_a_minute() -> None:
    texts = [fmt.ago(NOW, NOW + timedelta(seconds=seconds)) for seconds in range(180)]
    minute = f"{fmt.THIN}min ago"
    assert texts == ["just now"] * 60 + [f"1{minute}"] * 60 + [f"2{minute}"] * 60


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("training", "training"),
        ("gate, candidate: answers", "in the gate (candidate: answers)"),
        ("gate: likelihood of pairs", "in the gate (likelihood of pairs)"),
        ("gate", "in the gate"),
        ("something_new", "something new"),
    ],
)
def test_run_stage_is_described_in_words(stage: str, words: str) -> None:
    page = view(status(), run=run_progress(stage=stage, step=3, steps=12, eta_s=None))
    assert page.headline.text == f"Run in progress: {words}"
    assert f"{words[0].upper()}{words[1:]}</p>" in render(page)["run"]
