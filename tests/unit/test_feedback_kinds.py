"""Every kind of feedback in the table, on its way from the API to a dataset and to the gate.

The tests are parametrised over the table, so a new row is tested by all of them.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from services.feedback.core.schemas import FEEDBACK_BODY, FeedbackBody, parse_body, to_event
from services.processor.core.batches import BatchLimits
from services.processor.live_view.tally_table import COUNTERS, TallyTable
from services.trainer.dataset.filters import Row
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.objectives import objective_of
from services.trainer.dataset.signal_rows import rows_of
from services.trainer.dataset.snapshot import build
from services.trainer.dataset.trl_records import build_export
from services.trainer.gate.eval_items import build_eval_items
from services.trainer.gate.metrics.pair_margins import PAIR_MARGINS
from services.trainer.gate.preference_pairs import build_preference_pairs
from shared.events import Choice, Feedback, Retract, SignalKind, Tally
from shared.feedback_kinds import FEEDBACK_KINDS, ITEM, KIND_BY_NAME, PAIR_MATCHERS, FeedbackKind, hint_for
from shared.topics import FEEDBACK_TALLIES
from tests.trainer_factories import LINE, example
from tests.unit.processor_driver import START, ProcessorDriver, response

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "records"
LEARNER = next(user for user in (f"u{n}" for n in range(100)) if not is_held_out(LINE, user))
HELD_OUT = next(user for user in (f"u{n}" for n in range(100)) if is_held_out(LINE, user))
CHOICES = (Choice(index=0, text="Python is a snake."), Choice(index=1, text="It is a language."))


def sample_values(kind: FeedbackKind) -> list[Any]:
    """Return the value of the kind's golden record, and each value that the table names."""
    golden = json.loads((GOLDEN / f"{kind.record.__name__}.json").read_text())["value"]
    named = [] if isinstance(kind.counter, str) else list(kind.counter)
    return [golden, *(value for value in (*named, *kind.liked) if value != golden)]


KINDS = [pytest.param(kind, id=kind.name) for kind in FEEDBACK_KINDS]
SAMPLES = [
    pytest.param(kind, value, id=f"{kind.name}-{number}")
    for kind in FEEDBACK_KINDS
    for number, value in enumerate(sample_values(kind))
]


def event_of(kind: FeedbackKind, value: Any, user: str = LEARNER, number: int = 0) -> Feedback:
    """Return the record that the feedback API writes for a request."""
    request = {"response_id": f"r{number}", "user_id": "alice", "kind": kind.name, "value": value}
    body = parse_body(FEEDBACK_BODY, json.dumps(request).encode())
    now = START + timedelta(seconds=1)
    return to_event(body, event_id=f"e{number}", line=LINE, pseudonym=user, now=now)


def process(events: list[Feedback]) -> ProcessorDriver:
    """Return a processor that has joined each event with a response of its own and cut the batches."""
    driver = ProcessorDriver(BatchLimits(examples=1))
    for event in events:
        driver.append(response(event.response_id, line=LINE, choices=CHOICES))
        driver.append(event, at_s=2)
    return driver


def rows_from(driver: ProcessorDriver) -> list[Row]:
    """Return the dataset rows of all batches; comments are appended to the answer."""
    return [row for revision in driver.newest.values() for row in rows_of(example(revision), "append")[0]]


# --- the table and the types agree ------------------------------------------------------------------------------


def test_union_of_events_has_the_records_of_the_table() -> None:
    members = get_args(get_args(Feedback)[0])
    assert members == (*(kind.record for kind in FEEDBACK_KINDS), Retract)


def test_signal_kinds_are_the_names_of_the_table() -> None:
    assert get_args(SignalKind) == tuple(KIND_BY_NAME)
    assert len(KIND_BY_NAME) == len(FEEDBACK_KINDS)


def test_tally_has_the_counters_of_the_table() -> None:
    assert [name for kind in FEEDBACK_KINDS for name in kind.counters] == list(COUNTERS)


@pytest.mark.parametrize("kind", KINDS)
def test_row_is_consistent(kind: FeedbackKind) -> None:
    assert bool(kind.liked) == (kind.objective == "kto")
    assert (
        kind.matcher is None
        or kind.matcher.how
        in {
            "sft": {"item"},
            "kto": {"match_labels"},
            "dpo": {"pair"},
        }[kind.objective]
    )
    assert not kind.is_remark or (kind.objective == "sft" and kind.matcher is None)
    assert kind.hint is None or isinstance(kind.counter, str), "a vague value is not stored, only counted"
    assert kind.sum_counter is None or isinstance(kind.counter, str)
    assert isinstance(kind.counter, str) or kind.liked.keys() == kind.counter.keys()


def test_matcher_names_are_unique() -> None:
    assert len({matcher.name for matcher in PAIR_MATCHERS}) == len(PAIR_MATCHERS)


# --- feedback service and processor -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_api_documentation_lists_kind_and_value(kind: FeedbackKind) -> None:
    fields = FeedbackBody.model_fields
    assert kind.name in (fields["kind"].description or "")
    assert kind.value_help in (fields["value"].description or "")


@pytest.mark.parametrize(("kind", "value"), SAMPLES)
def test_api_accepts_every_kind(kind: FeedbackKind, value: Any) -> None:
    event = event_of(kind, value)
    assert type(event) is kind.record
    assert hint_for(event) is None
    assert json.loads(event.to_json())["value"] == value


@pytest.mark.parametrize(("kind", "value"), SAMPLES)
def test_signal_is_batched_with_its_value(kind: FeedbackKind, value: Any) -> None:
    driver = process([event_of(kind, value)])
    assert driver.outcomes == {"e0": "batched"}
    (batch,) = driver.batches
    (signal,) = batch.examples[0].signals
    assert (signal.kind, json.loads(signal.model_dump_json())["value"]) == (kind.name, value)


@pytest.mark.parametrize(("kind", "value"), SAMPLES)
def test_signal_changes_only_its_counters(kind: FeedbackKind, value: Any) -> None:
    expected = Counter({kind.counter if isinstance(kind.counter, str) else kind.counter[value]: 1})
    if kind.sum_counter is not None:
        expected[kind.sum_counter] = value
    driver = process([event_of(kind, value)])
    tally = driver.tallies[LEARNER]
    assert {name: getattr(tally, name) for name in COUNTERS if getattr(tally, name)} == expected
    table = TallyTable()
    (record,) = driver.values(FEEDBACK_TALLIES.name)
    table.apply(b"key", record)
    totals = table.summary()["totals"]
    assert all(totals[name] == count for name, count in expected.items() if name != kind.sum_counter)
    assert kind.sum_counter is None or totals[f"{kind.name}_mean"] == value


@pytest.mark.parametrize(("kind", "value"), SAMPLES)
def test_retraction_uncounts_signal(kind: FeedbackKind, value: Any) -> None:
    event = event_of(kind, value)
    driver = process([event])
    driver.append(
        Retract(
            line=LINE,
            response_id="r0",
            event_id="retraction",
            user_id=LEARNER,
            value=event.event_id,
            received_at=event.received_at,
        ),
        at_s=3,
    )
    tally = driver.tallies[LEARNER]
    assert tally == Tally.model_validate(tally.model_dump() | dict.fromkeys(COUNTERS, 0))
    assert driver.dataset == {}


# --- trainer and gate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "value"), SAMPLES)
def test_row_has_objective_and_label_of_its_kind(kind: FeedbackKind, value: Any) -> None:
    rows = rows_from(process([event_of(kind, value)]))
    if kind.objective == "kto" and value not in kind.liked:
        assert rows == []
        return
    (row,) = rows
    assert (row.kind, row.objective) == (kind.name, kind.objective)
    assert row.label == (kind.liked[value] if kind.objective == "kto" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_dataset_trains_with_objective_of_its_kind(kind: FeedbackKind) -> None:
    events = [event_of(kind, value, number=i) for i, value in enumerate(sample_values(kind))]
    revisions = process(events).newest.values()
    snapshot = build(LINE, [example(r) for r in revisions], {0: 9}, comments="append", kto_least=0)
    assert {grouped.row.objective for grouped in snapshot.train} == {kind.objective}
    if not kind.is_remark:
        export = build_export(LINE, [example(r) for r in revisions])
        assert kind.objective in {objective_of(record.fields()) for record in export.records}


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_signals_become_items_or_pairs(kind: FeedbackKind) -> None:
    values = sample_values(kind)
    events = [event_of(kind, value, HELD_OUT, number=i) for i, value in enumerate(values)]
    revisions = process(events).newest.values()
    snapshot = build(LINE, [example(r) for r in revisions], {0: 9}, comments="append")
    assert snapshot.train == ()
    items = build_eval_items(LINE, snapshot.heldout, [], [])
    pairs = build_preference_pairs(LINE, snapshot.heldout, [])
    assert bool(items.corrections) == (kind.matcher == ITEM)
    alone = [build_eval_items(LINE, [one], [], []) for one in snapshot.heldout]
    assert any(found.liked for found in alone) == any(kind.liked.values())
    if kind.matcher in PAIR_MATCHERS:
        assert kind.matcher is not None
        assert {pair.kind for pair in pairs} == {kind.matcher.name}
        assert f"{kind.matcher.name}_win_rate" in {figure.name for figure in PAIR_MARGINS.figures}
    else:
        assert pairs == []
