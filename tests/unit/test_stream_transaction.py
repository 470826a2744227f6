"""Tests of a commit in its own thread: a client that never returns, and one that raises."""

from __future__ import annotations

import threading

from confluent_kafka import KafkaError, KafkaException

from shared.stream.transaction import ClientsUnusable, PendingCommit


def test_client_that_never_returns_is_abandoned() -> None:
    may_return, committed = threading.Event(), list[str]()
    pending = PendingCommit(
        lambda: bool(may_return.wait(20)) and None, lambda: committed.append("done"), timeout_s=0.05
    )
    pending.wait()
    assert isinstance(pending.raised, ClientsUnusable)
    assert "does not return" in str(pending.raised)
    assert not committed
    may_return.set()


def test_failed_positions_are_reported_and_nothing_is_committed() -> None:
    def refuse() -> None:
        raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))

    committed = list[str]()
    pending = PendingCommit(refuse, lambda: committed.append("done"))
    pending.wait()
    assert isinstance(pending.raised, KafkaException)
    assert "ILLEGAL_GENERATION" in str(pending.raised)
    assert not committed
