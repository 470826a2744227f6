"""When a batch is cut, and what it then holds."""

from __future__ import annotations

from services.processor.core.batches import BatchLimits
from shared.errors import Oversized
from shared.events import Batch
from tests.unit.processor_driver import Bench, feedback, response


def corrected(bench: Bench, number: int, text: str = "A language.", at_s: float = 0.0) -> None:
    bench.say(response(f"r{number}"), at_s)
    bench.say(feedback("correction", text, f"e{number}", response_id=f"r{number}"), at_s)


def test_a_batch_is_cut_at_its_count_and_numbers_have_no_gap() -> None:
    bench = Bench(BatchLimits(examples=3))
    for number in range(7):
        corrected(bench, number)
    assert [(batch.batch_id, batch.reason, len(batch.examples)) for batch in bench.batches] == [
        ("assistant-0-1", "count", 3),
        ("assistant-0-2", "count", 3),
    ]
    bench.tick(31)
    assert [(batch.batch_id, batch.reason, len(batch.examples)) for batch in bench.batches][2:] == [
        ("assistant-0-3", "age", 1)
    ]


def test_a_quiet_partition_cuts_by_tick_and_not_before_its_age() -> None:
    bench = Bench()
    corrected(bench, 1)
    assert bench.tick(29) == []
    bench.tick(30)
    assert [batch.reason for batch in bench.batches] == ["age"]
    assert bench.tick(90) == []


def test_a_batch_is_cut_before_it_outgrows_its_bytes() -> None:
    bench = Bench(BatchLimits(size=6_000))
    for number in range(6):
        corrected(bench, number, "long " * 300)
    assert {batch.reason for batch in bench.batches} == {"bytes"}
    assert all(len(batch.to_json()) <= 6_000 for batch in bench.batches)


def test_an_example_too_large_for_any_batch_is_refused_and_the_rest_goes_on() -> None:
    bench = Bench(BatchLimits(size=6_000))
    corrected(bench, 1, "long " * 3_000)
    corrected(bench, 2)
    bench.tick(31)
    assert [type(error) for error in bench.dead] == [Oversized]
    assert list(bench.dataset) == ["r2"]


def test_an_edit_while_pending_replaces_the_revision_in_place() -> None:
    bench = Bench(BatchLimits(examples=3))
    corrected(bench, 1)
    bench.say(feedback("correction", "Better.", "e9", response_id="r1"), 1)
    bench.tick(31)
    assert [example.revision for batch in bench.batches for example in batch.examples] == [2]


def test_an_edit_that_no_longer_fits_goes_to_the_next_batch_alone() -> None:
    bench = Bench(BatchLimits(size=8_000))
    corrected(bench, 1, "short")
    corrected(bench, 2, "word " * 500)
    bench.say(feedback("correction", "word " * 1_000, "e9", response_id="r1"), 1)
    bench.tick(31)
    assert [[example.response_id for example in batch.examples] for batch in bench.batches] == [
        ["r2"],
        ["r1"],
    ]
    assert bench.dataset["r1"][0][0] == "e9"
    assert bench.outcomes == {"e1": "superseded", "e2": "batched", "e9": "batched"}


def test_each_line_has_batches_of_its_own() -> None:
    bench = Bench()
    bench.say(response("r1", line="support"))
    bench.say(feedback("correction", "A language.", "e1", response_id="r1"))
    corrected(bench, 2)
    bench.tick(31)
    assert sorted((batch.line, batch.batch_id) for batch in bench.batches) == [
        ("assistant", "assistant-0-1"),
        ("support", "support-0-1"),
    ]


def test_the_content_hash_names_the_content() -> None:
    bench = Bench()
    corrected(bench, 1)
    bench.tick(31)
    (batch,) = bench.batches
    assert batch.content_hash == Batch.hash_of(batch.examples)
