"""Response records between the answer and the log."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from threading import Event

import pytest

from services.inference.response_publisher import SpoolResponsePublisher, SpoolSender, StrictResponsePublisher
from services.inference.spool import ROW_BYTES, Spool
from shared.adapters.in_memory import MemoryLog, MemoryPublisher
from shared.errors import BrokerUnavailable, LoopwrightError, Misconfigured, Overloaded
from shared.ports import Acked
from shared.records import Output
from shared.telemetry import SPOOL_LOST, Readiness

TOPIC = "chat.responses"


def record(number: int, size: int = 10) -> Output:
    return Output(TOPIC, f"r{number}".encode(), b"x" * size, (("ce_id", f"r{number}".encode()),))


def arrived(log: MemoryLog) -> list[str]:
    return sorted(str(dict(found.headers)["ce_id"], "ascii") for found in log.records(TOPIC))


class Watched(MemoryPublisher):
    """Says when so many were tried."""

    def __init__(self, log: MemoryLog, service: str, tries: int) -> None:
        super().__init__(log, service)
        self.left = tries
        self.tried = Event()

    def publish(self, record: Output) -> Future[Acked]:
        future = super().publish(record)
        self.left -= 1
        if self.left <= 0:
            self.tried.set()
        return future


def test_records_come_back_in_order_and_as_they_were(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", 1 << 20)
    for number in range(3):
        spool.add(record(number))
    found = spool.oldest(10)
    assert [spooled.output for spooled in found] == [record(0), record(1), record(2)]
    spool.remove([found[0].number, found[1].number])
    assert [spooled.output for spooled in spool.oldest(10)] == [record(2)]
    spool.close()


def test_a_full_spool_refuses_and_takes_again_when_something_left(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", 2 * (ROW_BYTES + 102))
    spool.add(record(1, 100))
    spool.add(record(2, 100))
    with pytest.raises(Overloaded, match="full: 2 records"):
        spool.add(record(3, 100))
    spool.remove([spool.oldest(1)[0].number])
    spool.add(record(3, 100))
    assert len(spool) == 2
    spool.close()


def test_the_bound_holds_after_a_restart(tmp_path: Path) -> None:
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


def test_a_file_that_is_no_spool_is_said_at_start(tmp_path: Path) -> None:
    (tmp_path / "spool.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(Misconfigured, match="move it away"):
        Spool(tmp_path / "spool.sqlite", 1 << 20)


def test_what_is_spooled_is_sent_and_deleted_on_its_ack(tmp_path: Path) -> None:
    log = MemoryLog()
    spool, publisher = Spool(tmp_path / "spool.sqlite", 1 << 20), Watched(log, "inference", 250)
    for number in range(250):
        spool.add(record(number))
    sender = SpoolSender(spool, publisher)
    sender.start()
    assert publisher.tried.wait(10)
    sender.stop(5)
    assert len(arrived(log)) == 250
    assert len(spool) == 0
    spool.close()


def test_a_broker_that_is_away_loses_nothing(tmp_path: Path) -> None:
    """I12."""
    log = MemoryLog()
    spool, publisher = Spool(tmp_path / "spool.sqlite", 1 << 20), Watched(log, "inference", 3)
    publisher.failure = BrokerUnavailable("away")
    spool.add(record(1))
    sender = SpoolSender(spool, publisher, retry_s=0.01)
    sender.start()
    assert publisher.tried.wait(5)
    assert arrived(log) == []
    assert len(spool) == 1
    publisher.failure = None
    sender.stop(5)
    assert arrived(log) == ["r1"]
    assert len(spool) == 0
    spool.close()


def test_a_lost_ack_sends_again_under_the_same_identity(tmp_path: Path) -> None:
    log = MemoryLog()
    publisher = Watched(log, "inference", 1)
    publisher.failure, publisher.lose_acks = BrokerUnavailable("the answer was lost"), True
    spool = Spool(tmp_path / "spool.sqlite", 1 << 20)
    spool.add(record(1))
    sender = SpoolSender(spool, publisher)
    sender.start()
    assert publisher.tried.wait(5)
    sender.stop(0)
    publisher.failure = None
    again = SpoolSender(spool, publisher)
    again.start()
    again.stop(5)
    assert len(spool) == 0
    assert set(arrived(log)) == {"r1"}
    assert len(arrived(log)) >= 2
    spool.close()


def test_a_record_that_kafka_will_never_take_does_not_block_the_others(tmp_path: Path) -> None:
    log = MemoryLog()
    spool = Spool(tmp_path / "spool.sqlite", 1 << 24)
    spool.add(record(1, 2_000_000))
    spool.add(record(2))
    before = SPOOL_LOST._value.get()
    sender = SpoolSender(spool, MemoryPublisher(log, "inference"))
    sender.start()
    sender.stop(5)
    assert arrived(log) == ["r2"]
    assert len(spool) == 0
    assert SPOOL_LOST._value.get() == before + 1
    spool.close()


def test_when_the_spool_is_full_chats_go_on_and_the_loss_is_counted_and_shown(tmp_path: Path) -> None:
    spool, readiness, heard = Spool(tmp_path / "spool.sqlite", ROW_BYTES), Readiness(), []
    before = SPOOL_LOST._value.get()
    recorder = SpoolResponsePublisher(spool, readiness)
    recorder.keep(record(1), heard.append)
    assert heard == [None]
    assert SPOOL_LOST._value.get() == before + 1
    ready, checks = readiness.report()
    assert ready
    assert "1 response records lost" in checks["spool"]
    spool.close()


def test_strict_delivery_says_when_kafka_has_it_and_when_not() -> None:
    log = MemoryLog()
    publisher, heard = MemoryPublisher(log, "inference"), list[LoopwrightError | None]()
    recorder = StrictResponsePublisher(publisher)
    recorder.keep(record(1), heard.append)
    publisher.failure = BrokerUnavailable("away")
    recorder.keep(record(2), heard.append)
    assert heard == [None, publisher.failure]
    assert arrived(log) == ["r1"]
