"""The engine's rules that need no broker: slice sizes after aborts, too many dead letters, what one looks like."""

from __future__ import annotations

import threading

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from shared.dead_letters import DeadLetterLimit, DeadLetterRate, make_dead_letter, record_size
from shared.errors import Conflict, Fatal, Misconfigured
from shared.records import Record
from shared.stream.config import EngineConfig
from shared.stream.inputs import InputConsumer
from shared.stream.offsets import Positions
from shared.stream.slice_bisection import RecordId, SliceSize
from shared.stream.transaction import ClientsUnusable, PendingCommit

HERE: RecordId = ("t", 0, 5)


def aborts_until_given_up(size: SliceSize, *, caused_by_record: bool, most: int = 200) -> int | None:
    for count in range(1, most):
        if size.aborted(HERE, caused_by_record=caused_by_record):
            return count
    return None


def test_three_aborts_at_the_same_positions_halve_the_slice() -> None:
    size = SliceSize(4_000)
    assert [size.aborted(HERE, caused_by_record=True) for _ in range(2)] == [False, False]
    assert size.records == 4_000
    assert not size.aborted(HERE, caused_by_record=True)
    assert size.records == 2_000


def test_a_slice_is_halved_down_to_one_record_which_is_then_given_up() -> None:
    size = SliceSize(8)
    assert aborts_until_given_up(size, caused_by_record=True) == 4 * 3  # at 8, 4, 2 and 1
    assert size.records == 1


def test_no_record_is_given_up_for_a_broker_that_is_away() -> None:
    size = SliceSize(8)
    assert aborts_until_given_up(size, caused_by_record=False) is None
    assert size.records == 1


def test_what_was_given_up_is_given_up_again_only_after_three_more_that_blame_it() -> None:
    size = SliceSize(1)
    assert aborts_until_given_up(size, caused_by_record=True) == 3
    assert aborts_until_given_up(size, caused_by_record=False) is None
    assert aborts_until_given_up(size, caused_by_record=True) == 3


def test_other_positions_begin_a_new_count() -> None:
    size = SliceSize(8)
    for offset in range(10):
        assert not size.aborted(("t", 0, offset), caused_by_record=True)
    assert size.records == 8


def test_commits_let_the_slice_grow_again_up_to_its_largest() -> None:
    size = SliceSize(10)
    for _ in range(6):
        size.aborted(HERE, caused_by_record=True)
    assert size.records == 2
    grown = []
    for _ in range(4):
        size.committed()
        grown.append(size.records)
    assert grown == [4, 8, 10, 10]


def test_single_bad_records_never_reach_the_limit() -> None:
    rate = DeadLetterRate(DeadLetterLimit())
    for _ in range(100):
        assert not rate.add_dead_letter(ahead=500)
        rate.add_processed(1_000)


def test_where_every_record_fails_the_limit_is_reached_at_the_stated_count() -> None:
    rate = DeadLetterRate(DeadLetterLimit(window=1_000, max_share=0.1, min_records=100, max_count=20))
    assert [rate.add_dead_letter(ahead=n) for n in range(100)].index(True) == 99


def test_more_than_the_share_but_few_is_not_too_many() -> None:
    rate = DeadLetterRate(DeadLetterLimit(window=100, max_share=0.1, min_records=10, max_count=50))
    rate.add_processed(10)
    assert not any(rate.add_dead_letter(ahead=n) for n in range(50))


def test_an_aborted_slice_is_not_counted_twice() -> None:
    rate = DeadLetterRate(DeadLetterLimit(window=1_000, max_share=0.1, min_records=100, max_count=20))
    rate.add_processed(200)
    for _ in range(10):
        mark = rate.save()
        assert not any(rate.add_dead_letter(ahead=n) for n in range(15))
        rate.add_processed(15)
        rate.roll_back(mark)


RECORD = Record("feedback.events", 3, 42, 1_700, b"key", b"bytes", (("ce_id", b"1"),))


def test_a_dead_letter_carries_the_original_and_where_from_and_why() -> None:
    letter = make_dead_letter("dead.letters", RECORD, Conflict("other content"), "processor", 1_000_000)
    assert (letter.topic, letter.key, letter.value) == ("dead.letters", b"key", b"bytes")
    assert dict(letter.headers) == {
        "ce_id": b"1",
        "dl_topic": b"feedback.events",
        "dl_partition": b"3",
        "dl_offset": b"42",
        "dl_timestamp": b"1700",
        "dl_class": b"conflict",
        "dl_message": b"other content",
        "dl_service": b"processor",
    }


def test_a_dead_letter_never_grows_beyond_what_a_record_may_be() -> None:
    large = Record("t", 0, 1, 2, b"k" * 9_000, b"v" * 9_000, ())
    error = ValueError("x" * 100_000 + "\udcff")
    letter = make_dead_letter("dead", large, error, "processor", 10_000)
    assert letter.value is None
    assert letter.key is None
    assert dict(letter.headers)["dl_omitted"] == b"18000"
    assert record_size(letter.key, letter.value, letter.headers) < 4_096


def test_positions_survive_their_way_through_the_changelog() -> None:
    positions = Positions({"a": 12, "b": 0}, 1_700)
    assert Positions.decode(positions.encode()) == positions


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b'{"offsets": {"a": "x"}, "time_ms": 1}'])
def test_a_changelog_of_another_program_is_refused(value: bytes) -> None:
    with pytest.raises(Fatal, match="another program"):
        Positions.decode(value)


def config(**settings: object) -> EngineConfig:
    given: dict[str, object] = {
        "bootstrap_servers": "broker:9092",
        "application": "processor",
        "instance": "one",
        "inputs": ("a", "b"),
        "changelog": "c",
        "dead_letters": "d",
        "outputs": frozenset(),
    }
    return EngineConfig(**(given | settings))  # type: ignore[arg-type]


def test_extra_client_settings_reach_every_client_but_cannot_undo_exactly_once() -> None:
    given = config(client={"sasl.username": "x"})
    clients = (given.consumer_settings(), given.producer_settings(), given.restorer_settings(), given.watermark_settings())
    assert all(client["sasl.username"] == "x" for client in clients)
    with pytest.raises(Misconfigured, match=r"isolation\.level"):
        config(client={"isolation.level": "read_uncommitted"})


def test_a_transaction_must_time_out_before_the_session() -> None:
    with pytest.raises(Misconfigured, match="transaction_timeout"):
        config(transaction_timeout=6.0, session_timeout=6.0)
    producer, consumer = config().producer_settings(), config().consumer_settings()
    assert producer["transaction.timeout.ms"] < consumer["session.timeout.ms"]


def test_inputs_are_named_once_each() -> None:
    for inputs in ((), ("a", "a")):
        with pytest.raises(Misconfigured, match="inputs"):
            config(inputs=inputs)


class Assigned:
    """Stands where the consumer does in the callback of a rebalance."""

    def __init__(self) -> None:
        self.reads: list[TopicPartition] | None = None

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.reads = partitions


def test_the_same_partition_of_every_input_must_land_together() -> None:
    inputs, consumer = InputConsumer(config()), Assigned()
    together = [TopicPartition(topic, number) for topic in "ab" for number in (2, 0)]
    inputs._on_assign(consumer, together)  # type: ignore[arg-type]
    assert inputs.assigned == [0, 2]
    assert consumer.reads == []  # nothing is read before the state is restored
    with pytest.raises(Misconfigured, match="land together"):
        inputs._on_assign(consumer, together[:3])  # type: ignore[arg-type]
    inputs.close()


def test_partitions_that_were_lost_are_given_back_and_told_apart_from_those_handed_over() -> None:
    inputs, consumer = InputConsumer(config()), Assigned()
    inputs._on_assign(consumer, [TopicPartition(topic, 0) for topic in "ab"])  # type: ignore[arg-type]
    inputs._on_lost(consumer, [])  # type: ignore[arg-type]
    assert inputs.assigned is None
    assert inputs.revoke_reason is not None
    assert inputs.revoke_reason.startswith("lost")
    inputs._on_revoke(consumer, [])  # type: ignore[arg-type]
    assert inputs.revoke_reason == "handed over"
    inputs.close()


def test_a_client_that_never_returns_is_given_up() -> None:
    returns, rest = threading.Event(), list[str]()
    finishing = PendingCommit(lambda: bool(returns.wait(20)) and None, lambda: rest.append("done"), 0.05)
    finishing.wait()
    assert isinstance(finishing.raised, ClientsUnusable)
    assert "does not return" in str(finishing.raised)
    assert not rest
    returns.set()


def test_what_a_client_raises_in_time_is_passed_on_and_the_rest_is_not_done() -> None:
    def refuses() -> None:
        raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))

    rest = list[str]()
    finishing = PendingCommit(refuses, lambda: rest.append("done"))
    finishing.wait()
    assert isinstance(finishing.raised, KafkaException)
    assert "ILLEGAL_GENERATION" in str(finishing.raised)
    assert not rest
