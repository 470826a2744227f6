"""Outboxes of the SDK: nothing is lost or out of order, in memory and in a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright import outbox
from loopwright.errors import OutboxFull
from loopwright.outbox import FileOutbox, MemoryOutbox, Outbox

Make = Callable[[int], Outbox]
ROOM = 10_000_000


@pytest.fixture(params=["memory", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Make outboxes, each with a file of its own."""
    made: list[Outbox] = []

    def build(rows: int) -> Outbox:
        if request.param == "memory":
            made.append(MemoryOutbox(rows))
        else:
            made.append(FileOutbox(tmp_path / f"{len(made)}.db", ROOM))
        return made[-1]

    yield build
    for each in made:
        each.close()


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "take", "remove", "release", "refuse"]), st.integers(0, 5)), max_size=40
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(STEPS)
def test_every_row_waits_until_it_was_sent_or_refused(make: Make, steps: list[tuple[str, int]]) -> None:
    box = make(1_000)
    added = 0
    taken: dict[int, int] = {}
    """Number -> row, of those that somebody sends."""
    waiting: list[int] = []
    refused: list[int] = []
    for step, count in steps:
        if step == "put":
            box.put("feedback", json.dumps({"row": added}).encode())
            waiting.append(added)
            added += 1
        elif step == "take":
            found = box.take(count)
            assert [item.row["row"] for item in found] == waiting[:count]
            del waiting[:count]
            taken |= {item.number: item.row["row"] for item in found}
        elif taken:
            number = sorted(taken)[count % len(taken)]
            row = taken.pop(number)
            if step == "remove":
                box.remove([number])
            elif step == "release":
                box.release([number])
                waiting = sorted([*waiting, row])
            else:
                box.refuse(outbox.Item(number, "feedback", {"row": row}), "why")
                refused.append(row)
    assert box.waiting() == len(waiting) + len(taken)
    assert sorted(refusal.row["row"] for refusal in box.refused()) == sorted(refused)
    assert all(refusal.reason == "why" for refusal in box.refused())


def test_full_memory_takes_no_row() -> None:
    box = MemoryOutbox(2)
    box.put("feedback", b"{}")
    box.put("feedback", b"{}")
    with pytest.raises(OutboxFull, match="2 rows"):
        box.put("feedback", b"{}")


def fill(box: Outbox, row: bytes) -> None:
    for _ in range(1_000):
        box.put("feedback", row)


def test_full_file_takes_rows_again_once_some_were_sent(tmp_path: Path) -> None:
    box = FileOutbox(tmp_path / "spool.db", 300_000)
    row = json.dumps({"text": "x" * 1_000}).encode()
    with pytest.raises(OutboxFull, match="limit of 300000 bytes"):
        fill(box, row)
    assert 100 < box.waiting() < 300
    box.remove([item.number for item in box.take(1_000)])
    box.put("feedback", row)
    assert box.waiting() == 1
    box.close()


def test_row_outlives_the_process_and_what_a_dead_one_took_is_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "spool.db"

    def killed() -> None:
        box = FileOutbox(path, ROOM)
        for number in range(3):
            box.put("response", json.dumps({"row": number}).encode())
        assert len(box.take(2)) == 2
        os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(20)
    assert child.exitcode == -signal.SIGKILL
    box = FileOutbox(path, ROOM)
    assert box.waiting() == 3
    assert [item.row["row"] for item in box.take(5)] == [2], "the others may be on their way"
    now = outbox.time.time
    monkeypatch.setattr(outbox.time, "time", lambda: now() + 2 * outbox.LEASE_S)
    assert [item.row["row"] for item in box.take(5)] == [0, 1, 2]
    box.close()


def test_file_that_another_process_keeps_locked_blocks_for_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LOCK_S", 0.05)
    box = FileOutbox(tmp_path / "spool.db", ROOM)
    box.put("feedback", b"{}")
    other = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OutboxFull, match="locked"):
        box.put("feedback", b"{}")
    assert box.take(5) == []
    assert box.waiting() == 1
    other.execute("ROLLBACK")
    assert len(box.take(5)) == 1
    other.close()
    box.close()


def test_only_the_newest_refused_rows_are_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    box = make(10_000)
    for number in range(outbox.KEPT_REFUSALS + 5):
        box.put("feedback", json.dumps({"row": number}).encode())
    for item in box.take(outbox.KEPT_REFUSALS + 5):
        box.refuse(item, "why")
    assert [refusal.row["row"] for refusal in box.refused()][:1] == [5]
    assert len(box.refused()) == outbox.KEPT_REFUSALS
