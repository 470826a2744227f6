"""The index of receipts: equal to the log, however it was built, and after every restart and loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.feedback.core.receipts import NoOutcome
from services.feedback.receipt_index import INDEXED_TOPICS, BuildProgress, ReceiptIndex
from services.feedback.receipt_lookup import CHECK, ReceiptLookup
from shared.adapters.in_memory import InMemoryLog
from shared.errors import BrokerUnavailable, Overloaded
from shared.events import Outcome, OutcomeKind, RefusalReason, Thumbs
from shared.ports import Position
from shared.records import Output, Record
from shared.stream.rocksdb_store import RocksDBStoreFactory
from shared.stream.state_store import MemoryStore, StoreFailed
from shared.telemetry import Readiness
from shared.topics import DAY_MS, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES
from tests.feedback_factories import receipt_lookup

NOW = datetime(2026, 3, 4, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1000)
P = 2
EVENTS = [("r1", "e1"), ("r1", "e2"), ("r2", "e1"), ("r/1", "e"), ("r", "1/e")]
Ends = tuple[str, str] | None
"""How an arrival ended: (outcome, reason), or ("dead", ""), or None while it is pending."""
OWN = [("batched", ""), ("tally_only", ""), ("refused", "not_yours"), ("unmatched", "")]
REPETITION = [("duplicate", ""), ("refused", "conflict")]


def arrival(response_id: str, event_id: str) -> Output:
    event = Thumbs(
        line="assistant",
        response_id=response_id,
        event_id=event_id,
        user_id="u",
        value="up",
        received_at=NOW,
    )
    return Output(FEEDBACK_EVENTS.name, response_id.encode(), event.to_json())


def outcome(response_id: str, event_id: str, kind: str = "batched", reason: str = "") -> Outcome:
    return Outcome(
        line="assistant",
        response_id=response_id,
        event_id=event_id,
        outcome=OutcomeKind(kind),
        reason=RefusalReason(reason) if reason else None,
        batch_id="assistant-1-1" if kind == "batched" else None,
        detail="why" if kind == "refused" else None,
        decided_at=NOW,
    )


def ending(response_id: str, event_id: str, end: tuple[str, str]) -> Output:
    kind, reason = end
    if kind != "dead":
        return Output(
            FEEDBACK_OUTCOMES.name,
            response_id.encode(),
            outcome(response_id, event_id, kind, reason).to_json(),
        )
    letter = arrival(response_id, event_id)
    headers = (("dl_topic", b"feedback.events"), ("dl_class", b"malformed"), ("dl_message", b"broken"))
    return Output("dead.letters", letter.key, letter.value, headers)


def histories() -> st.SearchStrategy[list[tuple[tuple[str, str], list[Ends]]]]:
    """For each event, how its arrivals ended, in order: at most one with an outcome of its own."""

    def of_event(event: tuple[str, str]) -> st.SearchStrategy[tuple[tuple[str, str], list[Ends]]]:
        others = st.lists(st.sampled_from([*REPETITION, ("dead", ""), None]), max_size=3)
        own = st.lists(st.sampled_from(OWN), max_size=1)
        return st.tuples(others, own, others).map(lambda parts: (event, [*parts[0], *parts[1], *parts[2]]))

    return st.tuples(*map(of_event, EVENTS)).map(list)


def expected(ends: list[Ends], event: tuple[str, str]) -> str:
    """Return the stage that an event has, from how its arrivals ended."""
    own = [end for end in ends if end in OWN]
    if own:
        return own[0][0]
    if not ends:
        return "not_found"
    if None in ends:
        return "pending"
    if ("dead", "") in ends:
        return "dead"
    return next(end[0] for end in ends if end is not None)


def stage(index: ReceiptIndex, event: tuple[str, str]) -> str:
    found = index.find(*event)
    return found.value if isinstance(found, NoOutcome) else found.outcome.value


@settings(max_examples=60, deadline=None)
@given(history=histories(), data=st.data())
def test_index_says_what_the_log_says_in_any_order_of_its_topics(
    history: list[tuple[tuple[str, str], list[Ends]]], data: st.DataObject
) -> None:
    log = InMemoryLog(P)
    for event, ends in history:
        for end in ends:
            log.append(arrival(*event))
            if end is not None:
                log.append(ending(*event, end))
    store = MemoryStore()
    index = ReceiptIndex(lambda: store, max_records=1_000)
    positions = index.open()
    while waiting := [p for p in _positions() if log.end(p) > positions.get(p, 0)]:
        chosen = data.draw(st.sampled_from(waiting))
        batch = log.take(chosen, positions.get(chosen, 0), data.draw(st.integers(1, 4)))
        positions[chosen] = batch[-1].offset + 1
        index.apply(batch, positions)
        if data.draw(st.booleans()):
            positions = index.open()
    assert {event: stage(index, event) for event, _ in history} == {
        event: expected(ends, event) for event, ends in history
    }


def _positions() -> list[Position]:
    return [(topic, partition) for topic in INDEXED_TOPICS for partition in range(P)]


@pytest.mark.parametrize("end", [*OWN, *REPETITION])
def test_outcome_comes_back_with_all_that_receipts_show(end: tuple[str, str]) -> None:
    log, event = InMemoryLog(P), ("r1", "e1")
    log.append(arrival(*event), ending(*event, end))
    index = ReceiptIndex(MemoryStore, max_records=1_000)
    index.open()
    index.apply([*log.records(FEEDBACK_EVENTS.name), *log.records(FEEDBACK_OUTCOMES.name)], {})
    assert index.find(*event) == outcome(*event, *end)


# --- restarts, loss and damage ------------------------------------------------------------------------------------


def rocksdb(folder: Path) -> ReceiptIndex:
    factory = RocksDBStoreFactory(folder, cache_mb=8)
    return ReceiptIndex(lambda: factory(0), max_records=100_000)


def many(count: int) -> list[Record]:
    values = [(f"r{n}", f"e{n}") for n in range(count)]
    return [
        Record(topic, 0, n, NOW_MS, made.key, made.value, ())
        for n, event in enumerate(values)
        for topic, made in (
            (FEEDBACK_EVENTS.name, arrival(*event)),
            (FEEDBACK_OUTCOMES.name, ending(*event, ("batched", ""))),
        )
    ]


def test_index_survives_a_restart_with_its_positions(tmp_path: Path) -> None:
    first = rocksdb(tmp_path)
    assert first.open() == {}
    first.apply(many(50), {})
    first.close()
    second = rocksdb(tmp_path)
    assert second.open() == {(FEEDBACK_EVENTS.name, 0): 50, (FEEDBACK_OUTCOMES.name, 0): 50}
    assert stage(second, ("r7", "e7")) == "batched"
    second.close()


def test_killed_process_leaves_positions_that_match_the_contents(tmp_path: Path) -> None:
    first = rocksdb(tmp_path / "live")
    first.open()
    first.apply(many(50), {})
    # A copy of the folder while it is open is what a kill leaves: nothing was flushed.
    shutil.copytree(tmp_path / "live", tmp_path / "killed", ignore=shutil.ignore_patterns("LOCK"))
    first.close()
    second = rocksdb(tmp_path / "killed")
    known = second.open()
    assert all(known.get((topic, 0), 0) in (0, 50) for topic in INDEXED_TOPICS)
    assert stage(second, ("r7", "e7")) == ("batched" if known else "not_found")
    second.close()


def damage(folder: Path) -> None:
    """Overwrite the table files, but not their ends, so that opening them succeeds."""
    files = list(folder.rglob("*.sst"))
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[: len(content) // 2] = b"\xff" * (len(content) // 2)
        file.write_bytes(content)


@pytest.mark.parametrize("fault", ["lost", "damaged", "unreadable"])
def test_lost_or_damaged_index_is_built_again(tmp_path: Path, fault: str) -> None:
    log = InMemoryLog(P)
    for n in range(200):
        log.append(arrival(f"r{n}", "e"), ending(f"r{n}", "e", ("tally_only", "")))
    lookup = disk_lookup(log, tmp_path)
    with_lookup(lookup, lambda: None)
    if fault == "lost":
        shutil.rmtree(tmp_path / "0")
    elif fault == "damaged":
        damage(tmp_path / "0")
    else:
        (tmp_path / "0" / "CURRENT").write_bytes(b"garbage")
    again = disk_lookup(log, tmp_path)

    def all_found() -> None:
        for n in range(200):
            found = patient_find(again, f"r{n}", "e")
            assert isinstance(found, Outcome)
            assert found.outcome is OutcomeKind.TALLY_ONLY

    with_lookup(again, all_found)


def disk_lookup(log: InMemoryLog, folder: Path) -> ReceiptLookup:
    factory = RocksDBStoreFactory(folder, cache_mb=8)
    return receipt_lookup(log, P, open_store=lambda: factory(0))


def with_lookup(lookup: ReceiptLookup, use: Callable[[], object]) -> None:
    """Call `use` once the index is built, then stop."""
    lookup.follower.start()
    try:
        wait_until_built(lookup)
        use()
    finally:
        lookup.stop()


def wait_until_built(lookup: ReceiptLookup) -> None:
    for _ in range(1_000):
        if lookup.follower.caught_up:
            return
        lookup.index.wait_for(("none", 0), 1, 0.01)
    raise AssertionError("the index was not built in time")


def patient_find(lookup: ReceiptLookup, response_id: str, event_id: str) -> Outcome | NoOutcome:
    """Find while the index may be built again."""
    for _ in range(1_000):
        try:
            return lookup.find(response_id, event_id)
        except BrokerUnavailable:
            lookup.index.wait_for(("none", 0), 1, 0.01)
    raise AssertionError("the index was not built again in time")


# --- bounds -------------------------------------------------------------------------------------------------------


def on_day(day: int, offset: int) -> list[Record]:
    event, at = (f"r{offset}", "e"), NOW_MS + day * DAY_MS
    made = (arrival(*event), ending(*event, ("tally_only", "")))
    return [Record(output.topic, 0, offset, at, output.key, output.value, ()) for output in made]


def test_receipts_are_kept_for_the_retention_of_the_topic_and_no_longer() -> None:
    store = MemoryStore()
    index = ReceiptIndex(lambda: store, max_records=10_000)
    index.open()
    for day in range(200):
        index.apply(on_day(day, day), {})
    found = [day for day in range(200) if stage(index, (f"r{day}", "e")) != "not_found"]
    assert found == list(range(199 - 91, 200))
    facts = [key for key, _ in store.scan(b"f", b"g")]
    assert len(facts) == 92 + 37, "arrivals are kept for 35 days, outcomes for 90, and a segment of a day"
    assert int(store.get(b"n") or 0) == len(facts)


def test_index_has_at_most_the_limit_of_records_and_keeps_the_newest() -> None:
    store = MemoryStore()
    index = ReceiptIndex(lambda: store, max_records=40)
    index.open()
    for offset in range(100):
        index.apply(on_day(offset // 50, offset), {})
    assert len([key for key, _ in store.scan(b"f", b"g")]) <= 42
    assert stage(index, ("r99", "e")) == "tally_only"
    assert stage(index, ("r0", "e")) == "not_found"


# --- what is not in the index -------------------------------------------------------------------------------------


def test_event_accepted_a_moment_ago_is_pending_and_not_unknown() -> None:
    log = InMemoryLog(P)
    lookup = receipt_lookup(log, P)

    def check() -> None:
        for n in range(50):
            log.append(arrival(f"r{n}", "e"))
            assert lookup.find(f"r{n}", "e") is NoOutcome.PENDING
        assert lookup.find("r1", "other") is NoOutcome.NOT_FOUND

    with_lookup(lookup, check)


def test_unknown_event_is_unavailable_while_the_broker_is_away() -> None:
    log = InMemoryLog(P)
    log.append(arrival("r1", "e"))

    def away(_: Position) -> int:
        raise BrokerUnavailable("away")

    lookup = receipt_lookup(log, P, end_of=away)

    def check() -> None:
        assert lookup.find("r1", "e") is NoOutcome.PENDING
        with pytest.raises(BrokerUnavailable):
            lookup.find("r1", "unknown")

    with_lookup(lookup, check)


def test_unknown_events_cannot_hold_more_than_a_few_threads() -> None:
    log = InMemoryLog(P)

    def nested(_: Position) -> int:
        return 0 if lookup.find("r1", "unknown") is NoOutcome.NOT_FOUND else 1

    lookup = receipt_lookup(log, P, end_of=nested)

    def check() -> None:
        with pytest.raises(Overloaded):
            lookup.find("r1", "unknown")

    with_lookup(lookup, check)


def test_lookup_before_the_index_is_built_reports_the_progress() -> None:
    log, readiness = InMemoryLog(P), Readiness(CHECK)
    log.append(arrival("r1", "e"))
    lookup = receipt_lookup(log, P, readiness)
    with pytest.raises(BrokerUnavailable, match="index of receipts"):
        lookup.find("r1", "e")
    progress = BuildProgress({("a", 0): 5}, {("a", 0): 105, ("b", 1): 100})
    assert "50 of 200 records (25%)" in progress.describe({("a", 0): 55})
    assert "200 of 200 records (100%)" in progress.describe({("a", 0): 200, ("b", 1): 100})


def test_index_of_another_log_is_built_again() -> None:
    store, old, new = MemoryStore(), InMemoryLog(P), InMemoryLog(P)
    for n in range(9):
        old.append(arrival(f"old{n}", "e"))
    with_lookup(receipt_lookup(old, P, store=store), lambda: None)
    new.append(arrival("new", "e"))
    lookup = receipt_lookup(new, P, store=store)

    def check() -> None:
        assert lookup.find("new", "e") is NoOutcome.PENDING
        assert lookup.find("old1", "e") is NoOutcome.NOT_FOUND

    with_lookup(lookup, check)


def test_index_continues_after_retention_deleted_where_it_stopped() -> None:
    store, log = MemoryStore(), InMemoryLog(1)
    log.append(arrival("r1", "e"))
    with_lookup(receipt_lookup(log, 1, store=store), lambda: None)
    for n in range(5):
        log.append(arrival(f"later{n}", "e"))
    log.trim(FEEDBACK_EVENTS.name, 0, 3)
    lookup = receipt_lookup(log, 1, store=store)
    with_lookup(lookup, lambda: lookup.find("later4", "e") is NoOutcome.PENDING or pytest.fail("not read"))


def test_failed_read_opens_the_index_again() -> None:
    log, failing = InMemoryLog(P), [True]
    log.append(arrival("r1", "e"))

    class Failing(MemoryStore):
        def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
            if start.startswith(b"f") and failing:
                failing.clear()
                raise StoreFailed("a block is damaged")
            return super().scan(start, end)

    lookup = receipt_lookup(log, P, open_store=Failing)

    def check() -> None:
        with pytest.raises(BrokerUnavailable):
            lookup.find("r1", "e")
        assert patient_find(lookup, "r1", "e") is NoOutcome.PENDING

    with_lookup(lookup, check)
