"""When a batch is cut, and what it contains."""

from __future__ import annotations

from services.processor.core.batches import BatchLimits
from shared.events import Batch
from tests.unit.processor_driver import ProcessorDriver, feedback, response


def add_correction(
    driver: ProcessorDriver, number: int, text: str = "A language.", at_s: float = 0.0
) -> None:
    """Append a response and a correction of it."""
    driver.append(response(f"r{number}"), at_s)
    driver.append(feedback("correction", text, f"e{number}", response_id=f"r{number}"), at_s)


def test_batch_is_cut_at_its_count_and_numbers_have_no_gaps() -> None:
    driver = ProcessorDriver(BatchLimits(examples=3))
    for number in range(7):
        add_correction(driver, number)
    assert [(batch.batch_id, batch.reason, len(batch.examples)) for batch in driver.batches] == [
        ("assistant-0-1", "count", 3),
        ("assistant-0-2", "count", 3),
    ]
    driver.tick(31)
    assert [(batch.batch_id, batch.reason, len(batch.examples)) for batch in driver.batches][2:] == [
        ("assistant-0-3", "age", 1)
    ]


def test_quiet_partition_cuts_by_tick_at_the_batch_age() -> None:
    driver = ProcessorDriver()
    add_correction(driver, 1)
    assert driver.tick(29) == []
    driver.tick(30)
    assert [batch.reason for batch in driver.batches] == ["age"]
    assert driver.tick(90) == []


def test_batch_is_cut_before_it_exceeds_its_size() -> None:
    driver = ProcessorDriver(BatchLimits(size=6_000))
    for number in range(6):
        add_correction(driver, number, "long " * 300)
    assert {batch.reason for batch in driver.batches} == {"bytes"}
    assert all(len(batch.to_json()) <= 6_000 for batch in driver.batches)


def test_example_larger_than_a_batch_is_refused_alone() -> None:
    driver = ProcessorDriver(BatchLimits(size=6_000))
    add_correction(driver, 1, "long " * 3_000)
    add_correction(driver, 2)
    driver.tick(31)
    assert driver.outcomes == {"e1": "refused:too_large", "e2": "batched"}
    assert driver.errors == []
    assert list(driver.dataset) == ["r2"]


def test_edit_replaces_the_pending_revision() -> None:
    driver = ProcessorDriver(BatchLimits(examples=3))
    add_correction(driver, 1)
    driver.append(feedback("correction", "Better.", "e9", response_id="r1"), 1)
    driver.tick(31)
    assert [example.revision for batch in driver.batches for example in batch.examples] == [2]


def test_edit_that_does_not_fit_enters_the_next_batch() -> None:
    driver = ProcessorDriver(BatchLimits(size=8_000))
    add_correction(driver, 1, "short")
    add_correction(driver, 2, "word " * 500)
    driver.append(feedback("correction", "word " * 1_000, "e9", response_id="r1"), 1)
    driver.tick(31)
    assert [[example.response_id for example in batch.examples] for batch in driver.batches] == [
        ["r2"],
        ["r1"],
    ]
    assert driver.dataset["r1"][0][0] == "e9"
    assert driver.outcomes == {"e1": "superseded", "e2": "batched", "e9": "batched"}


def test_each_line_has_its_own_batches() -> None:
    driver = ProcessorDriver()
    driver.append(response("r1", line="support"))
    driver.append(feedback("correction", "A language.", "e1", response_id="r1"))
    add_correction(driver, 2)
    driver.tick(31)
    assert sorted((batch.line, batch.batch_id) for batch in driver.batches) == [
        ("assistant", "assistant-0-1"),
        ("support", "support-0-1"),
    ]


def test_content_hash_matches_the_examples() -> None:
    driver = ProcessorDriver()
    add_correction(driver, 1)
    driver.tick(31)
    (batch,) = driver.batches
    assert batch.content_hash == Batch.hash_of(batch.examples)
