"""The one transactional producer of a process: what may be tried again, what aborts, what ends the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from shared.errors import Fatal, Fenced, Misconfigured, Retryable
from shared.records import Output

CALL_TIMEOUT_S = 1.0
"""The longest single wait inside the client, so that a stop is noticed."""
DECISION_TIMEOUT_S, STOP_TIMEOUT_S = 10.0, 5.0
"""How long to ask what became of a transaction: normally, and after a stop."""
COMMIT_TIMEOUT_S = 2 * DECISION_TIMEOUT_S + 2 * CALL_TIMEOUT_S
"""Asking, and aborting where the answer is no, have taken no longer than this."""

Delivered = Callable[[KafkaError | None, Message], None]

_FENCED = frozenset({"_FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH"})
_MISCONFIGURED = frozenset(
    {
        "INVALID_TRANSACTION_TIMEOUT",
        "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "_INVALID_ARG",
    }
)
_NOT_CAUSED_BY_RECORD = frozenset(
    {
        # the broker is away, slow, or moving its partitions
        "_TRANSPORT", "_ALL_BROKERS_DOWN", "_TIMED_OUT", "_TIMED_OUT_QUEUE", "_MSG_TIMED_OUT", "_PURGE_QUEUE",
        "_PURGE_INFLIGHT", "_STATE", "REQUEST_TIMED_OUT", "NETWORK_EXCEPTION", "NOT_COORDINATOR",
        "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS", "NOT_ENOUGH_REPLICAS",
        "NOT_ENOUGH_REPLICAS_AFTER_APPEND", "NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE",
        "CONCURRENT_TRANSACTIONS", "KAFKA_STORAGE_ERROR", "THROTTLING_QUOTA_EXCEEDED",
        # the group is moving partitions
        "ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "REBALANCE_IN_PROGRESS", "FENCED_INSTANCE_ID",
        # the transaction outlived its time
        "INVALID_TXN_STATE", "INVALID_PRODUCER_ID_MAPPING", "UNKNOWN_PRODUCER_ID",
        "OUT_OF_ORDER_SEQUENCE_NUMBER",
    }
)  # fmt: skip


class TransactionAborted(Retryable):
    """The transaction was aborted; nothing of it counts. The same records may be tried again."""

    code = "aborted"

    def __init__(self, message: str, *, caused_by_record: bool = False, oversized: bool = False) -> None:
        """`caused_by_record`: the broker refused something that was sent, and may do so again."""
        super().__init__(message)
        self.caused_by_record = caused_by_record
        self.oversized = oversized


class ClientsUnusable(Retryable):
    """What became of the transaction is not known here, or this producer cannot go on.

    A new producer under the same identity decides it: `start` aborts what is still open, and shuts out what this one
    may yet have on its way. After that the changelog tells what was committed.
    """

    code = "unresolved"


class TransactionalProducer:
    """One transaction at a time.

    Every method does what it says, or raises `Aborted` after it has aborted, `Fenced` or `Misconfigured` where this
    process cannot go on, or `Unresolved` where this producer cannot. The broker fences both a producer whose identity
    another took over and one whose transaction took too long; a transaction older than it may be tells the second
    apart. Where both are true, it begins anew and fences the other, which then ends: one of the two is left.
    """

    def __init__(
        self, settings: dict[str, Any], stop: threading.Event, waiting: Callable[[str], None]
    ) -> None:
        """`waiting` is told, again and again, what keeps a call from succeeding."""
        self._identity = str(settings["transactional.id"])
        self._producer = Producer(settings)
        self._stop = stop
        self._waiting = waiting
        self._may_take_s = float(settings["transaction.timeout.ms"]) / 1000
        self._open = False
        self._opened_at = 0.0
        self._finishing: PendingCommit | None = None

    def start(self) -> bool:
        """Takes over the identity: aborts what a predecessor left open, fences one that still lives.

        False if stopped before the broker answered.
        """
        while not self._stop.is_set():
            try:
                self._producer.init_transactions(CALL_TIMEOUT_S)
            except KafkaException as raised:
                error = _cause(raised)
                if not error.retriable() or error.fatal():
                    raise self._ends(error) from raised
                self._waiting(f"for Kafka's transaction coordinator: {error.str()}")
            else:
                return True
        return False

    def begin(self) -> None:
        """Opens a transaction, if none is open."""
        if self._open:
            return
        try:
            self._producer.begin_transaction()
        except KafkaException as raised:
            raise self._ends(_cause(raised)) from raised
        self._open, self._opened_at = True, time.monotonic()

    def produce(self, outputs: Iterable[Output]) -> None:
        """Sends in the open transaction, or opens one.

        What the broker refuses shows when the transaction is committed, with its cause: a callback for every record
        would cost more than all the rest here.
        """
        send = self._producer.produce
        for output in outputs:
            if not self._open:
                self.begin()
            partition = -1 if output.partition is None else output.partition
            headers: Any = output.headers
            try:
                if headers:
                    send(output.topic, output.value, output.key, partition, headers=list(headers))
                else:
                    send(output.topic, output.value, output.key, partition)
            except BufferError:
                self._produce_one(output)
            except KafkaException as raised:
                raise self.abort(_cause(raised)) from raised

    def produce_changelog(self, topic: str, partition: int, writes: Mapping[bytes, bytes | None]) -> None:
        """As `produce`, for the states of one partition: they make up most of what is sent."""
        self.begin()
        send = self._producer.produce
        for key, value in writes.items():
            try:
                send(topic, value, key, partition)
            except BufferError:
                self._produce_one(Output(topic, key, value, (), partition))
            except KafkaException as raised:
                raise self.abort(_cause(raised)) from raised

    def produce_tracked(self, output: Output, delivered: Callable[[int], None]) -> None:
        """As `produce`, and tells the offset that the broker gave it: before the transaction is committed."""

        def acknowledged(error: KafkaError | None, message: Message) -> None:
            offset = message.offset()
            if error is None and offset is not None:
                delivered(offset)

        self._produce_one(output, acknowledged)

    def _produce_one(self, output: Output, acknowledged: Delivered | None = None) -> None:
        """Waits while the queue is full."""
        self.begin()
        partition = -1 if output.partition is None else output.partition
        headers: Any = list(output.headers)
        while True:
            try:
                self._producer.produce(
                    output.topic, output.value, output.key, partition, acknowledged, headers=headers
                )
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as raised:
                raise self.abort(_cause(raised)) from raised
            else:
                return

    def commit(
        self,
        positions: list[TopicPartition],
        group: Any,
        *,
        meanwhile: Callable[[], None] = lambda: None,
        sent: Callable[[], None] = lambda: None,
    ) -> None:
        """Adds the consumed positions, waits until the broker has everything of the open transaction, and commits it.

        That is done in a thread of its own, while `meanwhile` runs in the caller's: more than a tenth of the time goes
        by in waiting for the broker. `sent` is called in the other, before the commit. What `meanwhile` raises is
        raised only once the commit is decided.
        """
        finishing = self._finishing = PendingCommit(
            lambda: self.send_positions(positions, group), lambda: self._commit(sent)
        )
        try:
            meanwhile()
        finally:
            finishing.wait()
            self._finishing = None
        if finishing.raised is not None:
            raise finishing.raised
        self._open = False

    def wait_for_commit(self) -> None:
        """Waits until a commit under way is decided; returns at once if there is none. For a partition's hand-over."""
        if self._finishing is not None:
            self._finishing.wait()

    def send_positions(self, positions: list[TopicPartition], group: Any) -> None:
        """Adds the consumed positions. The first part of a commit, in its thread."""
        send = self._producer.send_offsets_to_transaction
        self._finish(lambda: send(positions, group, CALL_TIMEOUT_S))

    def _commit(self, sent: Callable[[], None]) -> None:
        """The rest of it. A call that timed out is asked again, never taken for an answer."""
        try:
            until = time.monotonic() + DECISION_TIMEOUT_S
            while self._producer.flush(CALL_TIMEOUT_S) and time.monotonic() < until:
                self._waiting("for Kafka to take records")  # the commit will tell what became of them
        except KafkaException as raised:
            error = _cause(raised)
            raise (self._ends(error) if error.fatal() else self.abort(error)) from raised
        sent()
        self._finish(lambda: self._producer.commit_transaction(CALL_TIMEOUT_S))
        self._producer.poll(0)  # for the acknowledgement of what was produced last, if it came only now

    def abort(self, error: KafkaError | None = None, why: str = "") -> TransactionAborted:
        """Aborts the open transaction, and returns what to raise."""
        begun = time.monotonic()
        while self._open:
            try:
                self._producer.abort_transaction(CALL_TIMEOUT_S)
            except KafkaException as raised:
                cause = _cause(raised)
                if not cause.retriable() or cause.fatal():
                    raise self._ends(cause) from raised
                self._wait_on(begun, "for Kafka to abort a transaction", cause)
            else:
                self._open = False
        if error is None:
            return TransactionAborted(why)
        name = error.name()
        return TransactionAborted(
            f"{name}: {error.str()}",
            caused_by_record=name not in _NOT_CAUSED_BY_RECORD,
            oversized=name in ("MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"),
        )

    def close(self) -> None:
        """Drops what is not committed. Waits for nothing: the broker aborts what was open, after its time."""
        self._producer.purge(blocking=False)

    def _finish(self, call: Callable[[], None]) -> None:
        """Asks until it is done."""
        begun = time.monotonic()
        while True:
            try:
                call()
            except KafkaException as raised:
                error = _cause(raised)
                if error.fatal() or error.name() in _FENCED:
                    raise self._ends(error) from raised
                if error.txn_requires_abort() or not error.retriable():
                    raise self.abort(error) from raised
                self._wait_on(begun, "for Kafka to take a transaction", error)
            else:
                return

    def _wait_on(self, begun: float, what: str, error: KafkaError) -> None:
        """Waiting goes on for a while, and a shorter one after a stop. By then the broker has aborted it."""
        self._waiting(f"{what}: {error.str()}")
        if time.monotonic() > begun + (STOP_TIMEOUT_S if self._stop.is_set() else DECISION_TIMEOUT_S):
            raise ClientsUnusable(f"{what}: {error.name()}: {error.str()}")

    def _ends(self, error: KafkaError) -> Fatal | ClientsUnusable:
        name = error.name()
        if name in _FENCED and self._open and time.monotonic() - self._opened_at >= self._may_take_s:
            return ClientsUnusable(
                "The broker aborted a transaction that stood open for longer than it may: this process, or the "
                f"broker, was away meanwhile ({error.str()})."
            )
        if name in _FENCED:
            return Fenced(
                f"The transactional.id {self._identity!r} was taken over ({error.str()}). Nothing was lost: start it "
                "again, and only one process under each instance name."
            )
        if name in _MISCONFIGURED:
            return Misconfigured(f"Kafka refuses the producer {self._identity!r}: {error.str()}")
        return ClientsUnusable(f"The producer {self._identity!r} cannot go on: {name}: {error.str()}.")


class PendingCommit:
    """A commit under way in a thread of its own: first the positions, then the rest.

    Where the group's coordinator went away, the client may never return from sending positions, whatever time-out it
    was given (librdkafka issues 5456 and 5511, open): then the thread is given up. All else ends in its time.
    """

    def __init__(
        self, positions: Callable[[], None], rest: Callable[[], None], give_up_s: float = COMMIT_TIMEOUT_S
    ) -> None:
        self.raised: BaseException | None = None
        self._positions, self._rest = positions, rest
        self._returned = threading.Event()
        self._until = time.monotonic() + give_up_s
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until it is decided, or given up; then `raised` says why it is not committed."""
        if self._returned.wait(max(0.0, self._until - time.monotonic())):
            self._thread.join()
        else:
            self.raised = ClientsUnusable("The client does not return from sending positions.")

    def _run(self) -> None:
        try:
            try:
                self._positions()
            finally:
                self._returned.set()
            self._rest()
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self.raised = error


def _cause(raised: KafkaException) -> KafkaError:
    cause: KafkaError = raised.args[0]
    return cause
