"""I4, I5: the batch table is a function of the set of (batch_id, rewrite), however the log delivers it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence, Set
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.trainer.database import open_database
from services.trainer.dataset import batch_table
from shared.events import Batch, ExampleRevision
from tests.trainer_factories import batch, revision


def fold(batches: Sequence[Batch]) -> dict[str, ExampleRevision]:
    """Return the expected examples, computed from the definition: the oracle of these tests."""
    latest: dict[str, Batch] = {}
    for one in batches:
        if one.batch_id not in latest or one.rewrite > latest[one.batch_id].rewrite:
            latest[one.batch_id] = one
    newest: dict[str, ExampleRevision] = {}
    for one in sorted(latest.values(), key=lambda batch: (batch.partition, batch.number)):
        for example in one.examples:
            known = newest.get(example.response_id)
            if known is None or example.revision > known.revision:
                newest[example.response_id] = example
    return {response_id: example for response_id, example in newest.items() if example.op == "upsert"}


def current(folder: Path, batches: list[Batch]) -> dict[str, ExampleRevision]:
    db = open_database(folder)
    try:
        with db:
            db.execute("DELETE FROM batches")
            db.execute("DELETE FROM rows")
        for one in batches:
            with db:
                batch_table.store_batch(db, one)
        return {
            e.revision.response_id: e.revision
            for e in batch_table.current_examples(db, batch_table.through(db))
        }
    finally:
        db.close()


def compacted(batches: list[Batch], spared: Set[int] = frozenset()) -> list[Batch]:
    """Return a topic after compaction by batch_id: the newest record per key, in the order of the log.

    The records at positions `spared` are still there, because the log cleaner has not reached them.
    """
    newest = {one.batch_id: i for i, one in enumerate(batches)}
    return [one for i, one in enumerate(batches) if newest[one.batch_id] == i or i in spared]


@st.composite
def logs(draw: st.DrawFn) -> list[Batch]:
    """Draw a log as the processor writes it: batches of new revisions, then increasing rewrites of some of them."""
    batches: list[Batch] = []
    revisions = dict.fromkeys("abcd", 0)
    for number in range(1, draw(st.integers(1, 6)) + 1):
        names = draw(st.sets(st.sampled_from("abcd"), min_size=1))
        examples = []
        for name in sorted(names):
            revisions[name] += 1
            op = draw(st.sampled_from(["upsert", "upsert", "retract"]))
            examples.append(
                revision(
                    name, f"What is {name}?", f"answer {revisions[name]}", revision=revisions[name], op=op
                )
            )
        batches.append(batch(examples, number))
    for rewrite in range(1, draw(st.integers(0, 3)) + 1):
        old = draw(st.sampled_from(batches))
        kept = [one for one in old.examples if draw(st.booleans())]
        batches.append(batch(kept, old.number, rewrite=rewrite))
    return batches


@given(log=logs(), data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_examples_do_not_depend_on_order_repeats_or_compaction(
    tmp_path: Path, log: list[Batch], data: st.DataObject
) -> None:
    expected = fold(log)
    delivered = data.draw(st.permutations([*log, *data.draw(st.lists(st.sampled_from(log), max_size=4))]))
    assert current(tmp_path, delivered) == expected
    assert current(tmp_path, compacted(log)) == expected
    assert current(tmp_path, [*log, *compacted(log)]) == expected
    spared = data.draw(st.sets(st.integers(0, len(log) - 1)))
    assert current(tmp_path, compacted(log, spared)) == expected
    read = data.draw(st.integers(0, len(log)))
    assert current(tmp_path, [*log[:read], *compacted(log, spared)]) == expected


def test_oracle_catches_taking_the_last_delivered_revision(tmp_path: Path) -> None:
    first, second = revision("a", "q", "old"), revision("a", "q", "new", revision=2)
    log = [batch([second], 2), batch([first], 1)]
    last_delivered = {e.response_id: e for one in log for e in one.examples}
    assert last_delivered != fold(log)
    assert current(tmp_path, log) == fold(log)


def test_retracted_correction_leaves_the_dataset(tmp_path: Path) -> None:
    log = [batch([revision("a", "q", "x")], 1), batch([revision("a", "q", "x", revision=2, op="retract")], 2)]
    assert current(tmp_path, log) == {}


def test_rewrite_replaces_its_batch_and_an_older_one_does_not(tmp_path: Path) -> None:
    whole = batch([revision("a", "q", "x"), revision("b", "q", "y")], 1)
    erased = batch([whole.examples[1]], 1, rewrite=1)
    assert list(current(tmp_path, [whole, erased])) == ["b"]
    assert list(current(tmp_path, [erased, whole])) == ["b"]


def test_resumed_run_reads_only_the_batches_it_began_with(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    with db:
        batch_table.store_batch(db, batch([revision("a", "q", "x")], 1))
        upto = batch_table.through(db)
        batch_table.store_batch(db, batch([revision("a", "q", "z", revision=2), revision("b", "q", "y")], 2))
    assert [e.revision.revision for e in batch_table.current_examples(db, upto)] == [1]
    db.close()


def test_positions_and_rows_are_stored_together_or_not_at_all(tmp_path: Path) -> None:
    db = open_database(tmp_path)

    def crash_in_the_middle() -> None:
        with db:
            batch_table.store_batch(db, batch([revision("a", "q", "x")], 1))
            batch_table.store_positions(db, {("training.batches", 0): 1})
            db.execute("INSERT INTO batches VALUES ('assistant-0-1', 0, 1, 0, 0)")

    with pytest.raises(sqlite3.IntegrityError):
        crash_in_the_middle()
    assert batch_table.positions(db) == {}
    assert batch_table.batch_count(db) == 0
    db.close()
