"""Transactional producer of a process: which errors are retried, which abort the transaction, which are fatal."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from shared.adapters.kafka_clients import build_producer
from shared.adapters.kafka_errors import (
    FENCED_ERRORS,
    OVERSIZED_ERRORS,
    TOPIC_ERRORS,
    blames_record,
    describe_refusal,
)
from shared.errors import Fatal, Fenced, Misconfigured, Retryable
from shared.kafka_connection import KafkaConnection
from shared.records import Output

CALL_TIMEOUT_S = 1.0
"""Longest single call into the client, so that a stop request is noticed."""
DECISION_TIMEOUT_S, STOP_TIMEOUT_S = 10.0, 5.0
"""How long to retry a call until the outcome of a transaction is known: normally, and after a stop request."""
COMMIT_TIMEOUT_S = 2 * DECISION_TIMEOUT_S + 2 * CALL_TIMEOUT_S
"""Upper bound for a commit, including an abort after it failed."""

DeliveryCallback = Callable[[KafkaError | None, Message], None]

_PRODUCED_TO = re.compile(r"\bfor (\S+) \[\d+\]")
_MISCONFIGURED = frozenset({"INVALID_TRANSACTION_TIMEOUT", "_INVALID_ARG"})


class TransactionAborted(Retryable):
    """The transaction was aborted and has no effect. The same records may be tried again."""

    code = "aborted"

    def __init__(
        self,
        message: str,
        *,
        caused_by_record: bool = False,
        oversized: bool = False,
        lasting: bool = False,
    ) -> None:
        """Create the error.

        `caused_by_record` means that the broker refused a record of the transaction, and probably will again;
        `oversized`, that the reason was its size. `lasting` says that a person has to act, for instance grant a
        permission, before a retry can succeed.
        """
        super().__init__(message)
        self.caused_by_record = caused_by_record
        self.oversized = oversized
        self.lasting = lasting


class ClientsUnusable(Retryable):
    """The outcome of a transaction is unknown, or the Kafka clients cannot continue. Create new ones.

    A new producer with the same `transactional.id` settles the outcome: its `start` aborts an open transaction and
    fences off requests of this producer that are still in flight. After that the changelog shows what was committed.
    """

    code = "clients_unusable"


class TransactionalProducer:
    """Producer that has one transaction at a time. Not thread-safe, except for `wait_for_commit`.

    Every method either succeeds or raises:

    - `TransactionAborted`, after aborting the transaction: try the slice again.
    - `ClientsUnusable`: this producer cannot continue; create a new one.
    - `Fenced` or `Misconfigured`: this process cannot continue.

    The broker fences a producer in two cases: another process took over its identity, or its transaction exceeded the
    timeout. The age of the transaction distinguishes them. If both apply, this process creates new clients and fences
    the other one, which then ends, so one of the two remains.
    """

    def __init__(
        self,
        kafka: KafkaConnection,
        settings: dict[str, Any],
        stop: threading.Event,
        on_waiting: Callable[[str], None],
    ) -> None:
        """Create the client; `start` connects it.

        `on_waiting` is called repeatedly, with the reason, while a call is retried.
        """
        self._identity = f"{kafka.prefix}{settings['transactional.id']}"
        self._producer = build_producer(kafka, settings)
        self._stop = stop
        self._on_waiting = on_waiting
        self._timeout_s = float(settings["transaction.timeout.ms"]) / 1000
        self._open = False
        self._opened_at = 0.0
        self._pending_commit: PendingCommit | None = None

    def start(self) -> bool:
        """Take over the `transactional.id`: abort a predecessor's open transaction, and fence the predecessor.

        Returns False if a stop was requested before the broker answered.
        """
        while not self._stop.is_set():
            try:
                self._producer.init_transactions(CALL_TIMEOUT_S)
            except KafkaException as raised:
                error = _cause(raised)
                if not error.retriable() or error.fatal():
                    raise self._to_raise(error) from raised
                self._on_waiting(f"for Kafka's transaction coordinator: {error.str()}")
            else:
                return True
        return False

    def begin(self) -> None:
        """Begin a transaction unless one is open."""
        if self._open:
            return
        try:
            self._producer.begin_transaction()
        except KafkaException as raised:
            raise self._to_raise(_cause(raised)) from raised
        self._open, self._opened_at = True, time.monotonic()

    def produce(self, outputs: Iterable[Output]) -> None:
        """Send outputs in the open transaction; begin one if necessary.

        Blocks while the client's queue is full. If the broker refuses a record, `commit` reports it: a delivery
        callback for every record would cost more than everything else here.
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
        """Send the changed state of one partition, as `produce` does but with less overhead per record."""
        self.begin()
        send = self._producer.produce
        for key, value in writes.items():
            try:
                send(topic, value, key, partition)
            except BufferError:
                self._produce_one(Output(topic, key, value, (), partition))
            except KafkaException as raised:
                raise self.abort(_cause(raised)) from raised

    def produce_tracked(self, output: Output, on_offset: Callable[[int, int | None], None]) -> None:
        """Send one output, and call `on_offset` with its offset and append time, before `commit` returns.

        The append time, in ms since the epoch, is None if the topic does not use LogAppendTime.
        """

        def acknowledged(error: KafkaError | None, message: Message) -> None:
            offset = message.offset()
            if error is None and offset is not None:
                kind, time_ms = message.timestamp()
                on_offset(offset, time_ms if kind == TIMESTAMP_LOG_APPEND_TIME else None)

        self._produce_one(output, acknowledged)

    def _produce_one(self, output: Output, acknowledged: DeliveryCallback | None = None) -> None:
        """Send one output, waiting while the client's queue is full."""
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
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Add the consumed positions to the open transaction, flush everything, and commit it.

        This runs in a thread of its own. The calling thread runs `meanwhile` at the same time, because waiting for the
        broker takes more than a tenth of the time; if `meanwhile` raises, the commit is decided first. The other
        thread calls `before_commit` when everything is flushed.
        """
        pending = self._pending_commit = PendingCommit(
            lambda: self.send_positions(positions, group), lambda: self._flush_and_commit(before_commit)
        )
        try:
            meanwhile()
        finally:
            pending.wait()
            self._pending_commit = None
        if pending.raised is not None:
            raise pending.raised
        self._open = False

    def wait_for_commit(self) -> None:
        """Block until a commit in progress is decided. Called before partitions are handed over."""
        if self._pending_commit is not None:
            self._pending_commit.wait()

    def send_positions(self, positions: list[TopicPartition], group: Any) -> None:
        """Add the consumed positions to the transaction: the first part of a commit, in its thread."""
        send = self._producer.send_offsets_to_transaction
        self._call_until_done(lambda: send(positions, group, CALL_TIMEOUT_S))

    def _flush_and_commit(self, before_commit: Callable[[], None]) -> None:
        """Run the second part of a commit. A call that timed out is repeated, never taken for a result."""
        try:
            until = time.monotonic() + DECISION_TIMEOUT_S
            while self._producer.flush(CALL_TIMEOUT_S) and time.monotonic() < until:
                self._on_waiting("for Kafka to take records")  # the commit reports their outcome
        except KafkaException as raised:
            error = _cause(raised)
            raise (self._to_raise(error) if error.fatal() else self.abort(error)) from raised
        before_commit()
        self._call_until_done(lambda: self._producer.commit_transaction(CALL_TIMEOUT_S))
        self._producer.poll(0)  # runs the callback of `produce_tracked`, if it is still due

    def abort(self, error: KafkaError | None = None, why: str = "") -> TransactionAborted:
        """Abort the open transaction, and return the exception to raise."""
        begun = time.monotonic()
        while self._open:
            try:
                self._producer.abort_transaction(CALL_TIMEOUT_S)
            except KafkaException as raised:
                cause = _cause(raised)
                if not cause.retriable() or cause.fatal():
                    raise self._to_raise(cause) from raised
                self._keep_waiting(begun, "for Kafka to abort a transaction", cause)
            else:
                self._open = False
        if error is None:
            return TransactionAborted(why)
        refusal = self._describe_refusal(error)
        return TransactionAborted(
            refusal or f"{error.name()}: {error.str()}",
            caused_by_record=blames_record(error),
            oversized=error.name() in OVERSIZED_ERRORS,
            lasting=refusal is not None,
        )

    def _describe_refusal(self, error: KafkaError) -> str | None:
        """Return what a person has to do before a retry can succeed, or None if a retry may succeed by itself."""
        refusal = describe_refusal(error, topic=_topic_of(error), identity=self._identity)
        if refusal is None and error.name() in TOPIC_ERRORS:
            return f"an output topic does not exist ({error.str()}): run the topics job"
        return refusal

    def close(self) -> None:
        """Drop uncommitted records without waiting. The broker aborts an open transaction when it times out."""
        self._producer.purge(blocking=False)

    def _call_until_done(self, call: Callable[[], None]) -> None:
        """Repeat a call until it succeeds, aborts the transaction, or takes too long."""
        begun = time.monotonic()
        while True:
            try:
                call()
            except KafkaException as raised:
                error = _cause(raised)
                if error.fatal() or error.name() in FENCED_ERRORS:
                    raise self._to_raise(error) from raised
                if error.txn_requires_abort() or not error.retriable():
                    raise self.abort(error) from raised
                self._keep_waiting(begun, "for Kafka to take a transaction", error)
            else:
                return

    def _keep_waiting(self, begun: float, reason: str, error: KafkaError) -> None:
        """Report the wait. Raises `ClientsUnusable` after the timeout.

        The broker has then aborted the transaction.
        """
        self._on_waiting(f"{reason}: {error.str()}")
        if time.monotonic() > begun + (STOP_TIMEOUT_S if self._stop.is_set() else DECISION_TIMEOUT_S):
            raise ClientsUnusable(f"waited too long {reason}: {error.name()}: {error.str()}")

    def _to_raise(self, error: KafkaError) -> Fatal | ClientsUnusable:
        name = error.name()
        if name in FENCED_ERRORS and self._open and time.monotonic() - self._opened_at >= self._timeout_s:
            return ClientsUnusable(
                "the broker aborted a transaction that exceeded its timeout, because this process or the broker was "
                f"unresponsive ({error.str()})."
            )
        if name in FENCED_ERRORS:
            return Fenced(
                f"the transactional.id {self._identity!r} was taken over ({error.str()}). Nothing was lost. Run only "
                "one process under each instance name, and start this one again."
            )
        if name in _MISCONFIGURED:
            return Misconfigured(f"Kafka refuses the producer {self._identity!r}: {error.str()}")
        refusal = self._describe_refusal(error)
        if refusal is not None:
            return ClientsUnusable(f"{refusal}.")
        return ClientsUnusable(f"the producer {self._identity!r} cannot continue: {name}: {error.str()}.")


class PendingCommit:
    """A commit that runs in its own thread: first the positions, then the rest.

    If the group's coordinator disappears, the client may never return from sending positions, whatever its timeout
    (librdkafka issues 5456 and 5511, both open). The thread is then abandoned. Every other call returns in time.
    """

    def __init__(
        self,
        positions: Callable[[], None],
        rest: Callable[[], None],
        timeout_s: float = COMMIT_TIMEOUT_S,
    ) -> None:
        """Start the thread, which calls `positions`, then `rest`."""
        self.raised: BaseException | None = None
        self._positions, self._rest = positions, rest
        self._returned = threading.Event()
        self._until = time.monotonic() + timeout_s
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Block until the commit is decided or abandoned. `raised` is then the reason why it failed, or None."""
        if self._returned.wait(max(0.0, self._until - time.monotonic())):
            self._thread.join()
        else:
            self.raised = ClientsUnusable("the Kafka client does not return from sending positions")

    def _run(self) -> None:
        try:
            try:
                self._positions()
            finally:
                self._returned.set()
            self._rest()
        except BaseException as error:  # noqa: BLE001 - `commit` raises it in its own thread
            self.raised = error


def _topic_of(error: KafkaError) -> str:
    """Return the topic that the client's text names, as in "ProduceRequest for topic [0] with 1 message(s) failed"."""
    found = _PRODUCED_TO.search(error.str())
    return found[1] if found else ""


def _cause(raised: KafkaException) -> KafkaError:
    cause: KafkaError = raised.args[0]
    return cause
