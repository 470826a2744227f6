"""Delivery of response records: the spool, its sender, and both kinds of publisher."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from threading import Event

import pytest

from services.inference.response_publisher import SpoolResponsePublisher, SpoolSender, StrictResponsePublisher
from services.inference.spool import ROW_BYTES, Spool
from shared.adapters.in_memory import InMemoryLog, InMemoryPublisher
from shared.errors import (
    BrokerUnavailable,
    Fenced,
    LoopwrightError,
    Misconfigured,
    NotPermitted,
    Overloaded,
)
from shared.ports import Acked
from shared.records import Output
from shared.telemetry import SPOOL_LOST, Readiness
from tests.fault.full_disks import can_mount, small_disk

TOPIC = "chat.responses"


def record(number: int, size: int = 10) -> Output:
    return Output(TOPIC, f"r{number}".encode(), b"x" * size, (("ce_id", f"r{number}".encode()),))


def arrived(log: InMemoryLog) -> list[str]:
    return sorted(str(dict(record.headers)["ce_id"], "ascii") for record in log.records(TOPIC))


class CountingPublisher(InMemoryPublisher):
    """Publisher that sets `attempted` after a number of attempts."""

    def __init__(self, log: InMemoryLog, service: str, attempts: int) -> None:
        super().__init__(log, service)
        self.remaining = attempts
        self.attempted = Event()

    def publish(self, record: Output) -> Future[Acked]:
        future = super().publish(record)
        self.remaining -= 1
        if self.remaining <= 0:
            self.attempted.set()
        return future


def test_records_are_returned_in_order_and_unchanged(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", 1 << 20)
    for number in range(3):
        spool.add(record(number))
    spooled_records = spool.oldest(10)
    assert [spooled.output for spooled in spooled_records] == [record(0), record(1), record(2)]
    spool.remove([spooled_records[0].number, spooled_records[1].number])
    assert [spooled.output for spooled in spool.oldest(10)] == [record(2)]
    spool.close()


def test_full_spool_refuses_until_a_record_is_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", 2 * (ROW_BYTES + 102))
    spool.add(record(1, 100))
    spool.add(record(2, 100))
    with pytest.raises(Overloaded, match="full: 2 records"):
        spool.add(record(3, 100))
    spool.remove([spool.oldest(1)[0].number])
    spool.add(record(3, 100))
    assert len(spool) == 2
    spool.close()


def test_size_limit_holds_after_a_restart(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool.sqlite", ROW_BYTES + 102)
    first.add(record(1, 100))
    first.close()
    second = Spool(tmp_path / "spool.sqlite", ROW_BYTES + 102)
    with pytest.raises(Overloaded):
        second.add(record(2, 100))
    second.close()


def test_two_processes_cannot_share_a_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", 1 << 20)
    with pytest.raises(Misconfigured, match="LOOPWRIGHT_DATA_DIR"):
        Spool(tmp_path / "spool.sqlite", 1 << 20)
    spool.close()


def test_file_that_is_no_database_is_misconfigured(tmp_path: Path) -> None:
    (tmp_path / "spool.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(Misconfigured, match="move the file away"):
        Spool(tmp_path / "spool.sqlite", 1 << 20)


def test_spooled_records_are_sent_and_removed(tmp_path: Path) -> None:
    log = InMemoryLog()
    spool, publisher = Spool(tmp_path / "spool.sqlite", 1 << 20), CountingPublisher(log, "inference", 250)
    for number in range(250):
        spool.add(record(number))
    sender = SpoolSender(spool, publisher, Readiness())
    sender.start()
    assert publisher.attempted.wait(10)
    sender.stop(5)
    assert len(arrived(log)) == 250
    assert len(spool) == 0
    spool.close()


def test_unavailable_broker_loses_no_record(tmp_path: Path) -> None:
    """I12."""
    log = InMemoryLog()
    spool, publisher = Spool(tmp_path / "spool.sqlite", 1 << 20), CountingPublisher(log, "inference", 3)
    publisher.failure = BrokerUnavailable("unavailable")
    spool.add(record(1))
    sender = SpoolSender(spool, publisher, Readiness(), retry_s=0.01)
    sender.start()
    assert publisher.attempted.wait(5)
    assert arrived(log) == []
    assert len(spool) == 1
    publisher.failure = None
    sender.stop(5)
    assert arrived(log) == ["r1"]
    assert len(spool) == 0
    spool.close()


def test_lost_acknowledgement_sends_again_under_the_same_id(tmp_path: Path) -> None:
    log = InMemoryLog()
    publisher = CountingPublisher(log, "inference", 1)
    publisher.failure, publisher.lose_acks = BrokerUnavailable("the acknowledgement was lost"), True
    spool = Spool(tmp_path / "spool.sqlite", 1 << 20)
    spool.add(record(1))
    sender = SpoolSender(spool, publisher, Readiness())
    sender.start()
    assert publisher.attempted.wait(5)
    sender.stop(0)
    publisher.failure = None
    second_sender = SpoolSender(spool, publisher, Readiness())
    second_sender.start()
    second_sender.stop(5)
    assert len(spool) == 0
    assert set(arrived(log)) == {"r1"}
    assert len(arrived(log)) >= 2
    spool.close()


def test_rejected_record_does_not_block_the_others(tmp_path: Path) -> None:
    log = InMemoryLog()
    spool = Spool(tmp_path / "spool.sqlite", 1 << 24)
    spool.add(record(1, 2_000_000))
    spool.add(record(2))
    before = SPOOL_LOST._value.get()
    sender = SpoolSender(spool, InMemoryPublisher(log, "inference"), Readiness())
    sender.start()
    sender.stop(5)
    assert arrived(log) == ["r2"]
    assert len(spool) == 0
    assert SPOOL_LOST._value.get() == before + 1
    spool.close()


def test_full_spool_fails_no_chat_and_the_loss_is_shown(tmp_path: Path) -> None:
    spool, readiness = Spool(tmp_path / "spool.sqlite", ROW_BYTES), Readiness()
    before = SPOOL_LOST._value.get()
    response_publisher = SpoolResponsePublisher(spool, readiness)
    calls: list[tuple[LoopwrightError | None, str | None]] = []
    response_publisher.publish(
        record(1), lambda error, not_recorded=None: calls.append((error, not_recorded))
    )
    [(error, not_recorded)] = calls
    assert error is None
    assert "the spool is full" in (not_recorded or ""), "the answer says that it was not recorded"
    assert SPOOL_LOST._value.get() == before + 1
    ready, checks = readiness.report()
    assert ready
    assert "1 response records lost" in checks["spool"]
    spool.close()


def test_strict_delivery_reports_acknowledgement_and_failure() -> None:
    log = InMemoryLog()
    publisher, errors = InMemoryPublisher(log, "inference"), list[LoopwrightError | None]()
    response_publisher = StrictResponsePublisher(publisher)
    response_publisher.publish(record(1), errors.append)
    publisher.failure = BrokerUnavailable("unavailable")
    response_publisher.publish(record(2), errors.append)
    assert errors == [None, publisher.failure]
    assert arrived(log) == ["r1"]


@pytest.mark.parametrize("broken", ["oldest", "remove"])
def test_sender_survives_a_full_disk_and_sends_everything_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    log, readiness = InMemoryLog(), Readiness()
    spool, publisher = Spool(tmp_path / "spool.sqlite", 1 << 20), InMemoryPublisher(log, "inference")
    working, is_full = getattr(spool, broken), [True]

    def failing(argument: object) -> object:
        if is_full[0]:
            raise sqlite3.OperationalError("database or disk is full")
        return working(argument)

    monkeypatch.setattr(spool, broken, failing)
    sender = SpoolSender(spool, publisher, readiness, retry_s=0.01)
    assert readiness.report()[0]
    sender.start()
    spool.add(record(1))
    wait_until(lambda: not readiness.report()[0])
    assert "disk is full" in readiness.report()[1]["spool_sender"]
    is_full[0] = False
    wait_until(lambda: len(spool) == 0 and readiness.report()[0])
    spool.add(record(2))
    wait_until(lambda: len(spool) == 0)
    assert set(arrived(log)) == {"r1", "r2"}
    sender.stop(5)
    spool.close()


def test_record_that_cannot_be_removed_is_sent_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, readiness = InMemoryLog(), Readiness()
    spool, publisher = Spool(tmp_path / "spool.sqlite", 1 << 20), InMemoryPublisher(log, "inference")
    attempts, remove = [0], spool.remove

    def full_disk(numbers: Sequence[int]) -> None:
        attempts[0] += 1
        if attempts[0] < 20:
            raise Overloaded("the spool cannot be written: database or disk is full")
        remove(numbers)

    monkeypatch.setattr(spool, "remove", full_disk)
    for number in range(3):
        spool.add(record(number))
    sender = SpoolSender(spool, publisher, readiness, retry_s=0.005)
    sender.start()
    wait_until(lambda: len(spool) == 0 and readiness.report()[0])
    assert arrived(log) == ["r0", "r1", "r2"]
    spool.add(record(3))
    wait_until(lambda: len(spool) == 0)
    assert arrived(log) == ["r0", "r1", "r2", "r3"]
    sender.stop(5)
    spool.close()


@pytest.mark.parametrize(
    "error", [Fenced("another process has this name"), RuntimeError("the client is gone")]
)
def test_sender_survives_a_fatal_producer_and_readiness_says_so(tmp_path: Path, error: Exception) -> None:
    """A producer may raise at once, or fail each record."""
    log, readiness = InMemoryLog(), Readiness()
    spool, publisher = Spool(tmp_path / "spool.sqlite", 1 << 20), InMemoryPublisher(log, "inference")
    broken = [True]

    class Broken:
        problem = "the client failed"

        def publish(self, output: Output) -> Future[Acked]:
            if not broken[0]:
                return publisher.publish(output)
            if len(spool) % 2:
                raise error
            failed: Future[Acked] = Future()
            failed.set_exception(error)
            return failed

    sender = SpoolSender(spool, Broken(), readiness, retry_s=0.005)  # type: ignore[arg-type]
    sender.start()
    for number in range(3):
        spool.add(record(number))
        wait_until(lambda: readiness.report()[1]["spool_sender"] not in ("ok", "not ready"))
    assert arrived(log) == []
    broken[0] = False
    wait_until(lambda: len(spool) == 0 and readiness.report() == (True, {"spool_sender": "ok"}))
    assert arrived(log) == ["r0", "r1", "r2"]
    sender.stop(5)
    spool.close()


def test_strict_delivery_reports_a_producer_that_raises() -> None:
    class Broken:
        def publish(self, output: Output) -> Future[Acked]:
            raise RuntimeError("the client is gone")

    errors: list[LoopwrightError | None] = []
    StrictResponsePublisher(Broken()).publish(record(1), errors.append)  # type: ignore[arg-type]
    assert [type(error) for error in errors] == [BrokerUnavailable]


def test_spool_on_a_real_full_disk_loses_nothing_that_it_accepted(tmp_path: Path) -> None:
    """Needs the right to mount file systems; without it, SQLite's own limit stands in for the disk's size."""
    log, readiness = InMemoryLog(), Readiness()
    folder = tmp_path / "disk"
    with small_disk(folder, 4) if can_mount() else nullcontext():
        folder.mkdir(exist_ok=True)
        spool, publisher = Spool(folder / "spool.sqlite", 1 << 26), InMemoryPublisher(log, "inference")
        if not can_mount():
            spool._db.execute("PRAGMA max_page_count=500")
        publisher.failure = BrokerUnavailable("unavailable")
        sender = SpoolSender(spool, publisher, readiness, retry_s=0.02)
        sender.start()
        answers: list[tuple[LoopwrightError | None, str | None]] = []
        response_publisher = SpoolResponsePublisher(spool, readiness)
        for number in range(200):
            response_publisher.publish(
                record(number, 50_000), lambda error, not_recorded=None: answers.append((error, not_recorded))
            )
        accepted = [f"r{number}" for number, (_, lost) in enumerate(answers) if lost is None]
        assert {error for error, _ in answers} == {None}, "no chat fails"
        assert 5 < len(accepted) < 190
        assert "full" in str(next(lost for _, lost in answers if lost))
        assert f"{200 - len(accepted)} response records lost" in readiness.report()[1]["spool"]
        publisher.failure = None
        if can_mount():  # SQLite cannot note what it removes until there is space
            wait_until(lambda: len(log.records(TOPIC)) >= 5)
            (folder / "spool.sqlite").stat()
            subprocess.run(["mount", "-o", "remount,size=16m", str(folder)], check=True)
        wait_until(lambda: len(spool) == 0 and readiness.report()[1]["spool_sender"] == "ok")
        assert arrived(log) == sorted(accepted), "each one once"
        sender.stop(5)
        spool.close()


def test_spool_that_cannot_be_opened_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "spool.sqlite").mkdir()
    with pytest.raises(Misconfigured, match="free some disk space, and check that this process may write"):
        Spool(tmp_path / "spool.sqlite", 1 << 20)


def test_sqlite_errors_of_the_spool_are_retryable(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", 1 << 20)
    spool.add(record(1))
    number = spool.oldest(1)[0].number
    spool._db.close()
    for call in (lambda: spool.oldest(1), lambda: spool.remove([number]), lambda: spool.add(record(2))):
        with pytest.raises(Overloaded):
            call()


def test_refused_records_wait_in_the_spool_and_readiness_says_why(tmp_path: Path) -> None:
    log, readiness = InMemoryLog(), Readiness()
    spool, publisher = Spool(tmp_path / "spool.sqlite", 1 << 20), InMemoryPublisher(log, "inference")
    publisher.failure = NotPermitted("the principal may not write to chat.responses: grant WRITE")
    sender = SpoolSender(spool, publisher, readiness, retry_s=0.01)
    sender.start()
    spool.add(record(1))
    wait_until(lambda: "grant WRITE" in readiness.report()[1]["spool_sender"])
    assert readiness.report()[0], "answers go on while the spool has space"
    publisher.failure = None
    wait_until(lambda: len(spool) == 0 and readiness.report()[1]["spool_sender"] == "ok")
    assert arrived(log) == ["r1"]
    sender.stop(5)
    spool.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
