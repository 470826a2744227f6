"""Records are read with unknown fields of newer writers: one golden file per record class."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import commands, events, versions
from shared.commands import COMMAND, CommandBase
from shared.errors import Malformed, Oversized
from shared.events import (
    FEEDBACK,
    MAX_MS,
    MAX_RECORD_BYTES,
    MIN_MS,
    Batch,
    Correction,
    ExampleRevision,
    FeedbackBase,
    LogRecord,
    from_ms,
    parse_union,
    rfc3339,
    to_ms,
)
from shared.versions import DatasetRef, batch_name, batch_position, version_name

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "records"
UNKNOWN = "added_later"
ABSTRACT = {LogRecord, FeedbackBase, CommandBase}
CLASSES = {
    name: member
    for module in (commands, events, versions)
    for name, member in vars(module).items()
    if isinstance(member, type) and issubclass(member, LogRecord) and member not in ABSTRACT
}


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


def without_unknown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_unknown(item) for key, item in value.items() if key != UNKNOWN}
    return [without_unknown(item) for item in value] if isinstance(value, list) else value


def read(name: str, value: bytes) -> LogRecord:
    """Read a record as services do: through its union if it is one of several kinds."""
    record = CLASSES[name]
    if issubclass(record, FeedbackBase):
        return parse_union(FEEDBACK, value)
    if issubclass(record, CommandBase):
        return parse_union(COMMAND, value)
    return record.from_json(value)


def test_every_record_class_has_its_golden_file() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(CLASSES)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_golden_records_are_read_with_every_field(name: str) -> None:
    written = json.loads(golden(name))
    record = read(name, golden(name))
    assert type(record) is CLASSES[name]
    assert json.loads(record.to_json()) == without_unknown(written)
    missing = set(CLASSES[name].model_fields) - set(written)
    assert not missing, f"the golden file says nothing of {missing}"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_written_record_is_read_back_unchanged(name: str) -> None:
    record = read(name, golden(name))
    assert read(name, record.to_json()) == record


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_record_without_its_identity_is_malformed(name: str) -> None:
    required = [field for field, info in CLASSES[name].model_fields.items() if info.is_required()]
    assert "line" in required
    for field in required:
        cut = {key: value for key, value in json.loads(golden(name)).items() if key != field}
        with pytest.raises(Malformed):
            read(name, json.dumps(cut).encode())


GARBAGE = {
    "nothing": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe{}",
    "not an object": b"[]",
    "null": b"null",
    "an empty object": b"{}",
    "deep": b"[" * 100_000,
    "a lone surrogate": b'{"line": "\\ud800"}',
    "another record": b'{"schema_version": 1, "line": "assistant", "kind": "shout"}',
}


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_malformed_and_nothing_else(name: str, value: bytes) -> None:
    with pytest.raises(Malformed):
        read(name, value)


def test_an_absent_value_is_malformed_and_a_huge_one_oversized() -> None:
    with pytest.raises(Malformed):
        Correction.from_json(None)
    with pytest.raises(Oversized):
        Correction.from_json(b"x" * (MAX_RECORD_BYTES + 1))
    with pytest.raises(Oversized):
        parse_union(FEEDBACK, b"x" * (MAX_RECORD_BYTES + 1))


def test_error_does_not_repeat_the_text_that_was_sent() -> None:
    secret = "the card number 4929 1234"
    sent = json.loads(golden("Correction")) | {"value": {"text": secret}, "user_id": f"{secret} "}
    with pytest.raises(Malformed) as refused:
        read("Correction", json.dumps(sent).encode())
    assert secret not in str(refused.value)
    assert "value" in str(refused.value) or "user_id" in str(refused.value)


@pytest.mark.parametrize("bad", ["", "a b", "tab\t", "line\n", "\x00", "\x7f", "é", "x" * 129])
def test_an_id_is_printable_ascii_without_spaces(bad: str) -> None:
    sent = json.loads(golden("Thumbs")) | {"event_id": bad}
    with pytest.raises(Malformed):
        read("Thumbs", json.dumps(sent).encode())


def test_a_time_without_a_zone_is_refused() -> None:
    sent = json.loads(golden("Thumbs")) | {"received_at": "2026-01-02T03:04:05"}
    with pytest.raises(Malformed):
        read("Thumbs", json.dumps(sent).encode())


def test_digest_covers_content_and_not_delivery() -> None:
    content = json.loads(golden("Correction"))
    first = parse_union(FEEDBACK, json.dumps(content).encode()).content_digest()
    again = content | {"received_at": "2026-02-01T00:00:00Z", "schema_version": 2}
    assert parse_union(FEEDBACK, json.dumps(again).encode()).content_digest() == first
    changes: list[dict[str, Any]] = [
        {"value": "110 degrees."},
        {"choice": 0},
        {"tags": []},
        {"user_id": "u_other"},
    ]
    for change in changes:
        assert parse_union(FEEDBACK, json.dumps(content | change).encode()).content_digest() != first


def test_batch_hash_covers_only_its_examples() -> None:
    batch = Batch.from_json(golden("Batch"))
    assert Batch.hash_of(batch.examples) == Batch.hash_of(
        tuple(ExampleRevision.from_json(example.to_json()) for example in batch.examples)
    )
    assert Batch.hash_of(batch.examples) != Batch.hash_of(batch.examples * 2)


def test_a_dataset_holds_the_batches_up_to_its_numbers() -> None:
    dataset = DatasetRef(digest="0" * 64, examples=1, users=1, through={"2": 17})
    held = [batch_name("my-line", 2, 17), batch_name("my-line", 2, 1)]
    not_held = [batch_name("my-line", 2, 18), batch_name("my-line", 0, 1)]
    assert [dataset.holds(name) for name in held + not_held] == [True, True, False, False]
    assert batch_position(batch_name("my-line-2", 3, 4)) == (3, 4)


def test_a_version_is_named_by_number_and_content() -> None:
    assert version_name("assistant", 3, "ab" * 32) == "assistant@v3-abababab"
    assert version_name("assistant", None, "ab" * 32) == "assistant@base-abababab"


@given(st.integers())
def test_any_milliseconds_render_as_a_time_that_reads_back(ms: int) -> None:
    moment = datetime.fromisoformat(rfc3339(from_ms(ms)))
    assert abs(to_ms(moment) - min(max(ms, MIN_MS), MAX_MS)) <= 1


@pytest.mark.parametrize("ms", [-(10**400), -(2**63), MIN_MS - 1, MAX_MS + 1, 2**63, 10**400])
def test_milliseconds_out_of_range_become_the_nearest_time(ms: int) -> None:
    assert to_ms(from_ms(ms)) == (MIN_MS if ms < 0 else MAX_MS)


@given(st.datetimes(), st.integers(-1439, 1439))
def test_a_time_at_any_offset_renders_in_utc(naive: datetime, minutes: int) -> None:
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    rendered = datetime.fromisoformat(rfc3339(moment))
    assert rendered.tzinfo == UTC
    assert rendered == moment or not MIN_MS <= to_ms(moment) <= MAX_MS


def test_times_that_overflow_in_utc_render_as_the_first_and_last() -> None:
    assert rfc3339(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))) == "0001-01-01T00:00:00Z"
    last = rfc3339(datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-14))))
    assert last.startswith("9999-12-31T23:59:59.99")
