"""What a step writes is visible to it at once, and gone if it raises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Oversized
from shared.stream.state_store import POSITIONS_KEY, MemoryStore
from shared.stream.write_buffer import WriteBuffer


def over(**stored: bytes) -> WriteBuffer:
    store = MemoryStore()
    store.apply({key.encode(): value for key, value in stored.items()} | {POSITIONS_KEY: b"{}"}, 1)
    return WriteBuffer(store, max_record_bytes=1_000)


def test_a_step_reads_what_it_wrote() -> None:
    state = over(a=b"1")
    state.put(b"a", b"2")
    state.put(b"b", b"3")
    assert (state.get(b"a"), state.get(b"b")) == (b"2", b"3")
    state.delete(b"a")
    assert state.get(b"a") is None


def test_undo_goes_back_to_the_savepoint_and_no_further() -> None:
    state = over(a=b"1", b=b"1")
    state.savepoint()
    state.put(b"a", b"2")
    state.savepoint()
    state.put(b"a", b"3")
    state.put(b"a", b"4")
    state.delete(b"b")
    state.put(b"c", b"5")
    state.undo()
    assert state.writes == {b"a": b"2"}
    assert [state.get(k) for k in (b"a", b"b", b"c")] == [b"2", b"1", None]


def test_a_scan_merges_store_and_writes_and_hides_the_engines_own_key() -> None:
    state = over(a=b"1", c=b"1", e=b"1")
    state.put(b"b", b"2")
    state.put(b"c", b"2")
    state.delete(b"e")
    assert list(state.scan(b"", b"\xff")) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"2")]
    assert list(state.scan(b"b", b"c")) == [(b"b", b"2")]


def test_a_scan_does_not_see_what_is_written_while_it_runs() -> None:
    state = over(a=b"1", b=b"1")
    found = []
    for key, _ in state.scan(b"", b"\xff"):
        state.delete(key)
        state.put(key + b"x", b"2")
        found.append(key)
    assert found == [b"a", b"b"]
    assert [key for key, _ in state.scan(b"", b"\xff")] == [b"ax", b"bx"]


def test_a_value_too_large_for_the_changelog_is_refused_before_it_is_written() -> None:
    state = over()
    with pytest.raises(Oversized, match="at most 1000"):
        state.put(b"k", b"x" * 1_000)
    assert state.writes == {}


def test_the_engines_own_key_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="engine's own"):
        over().put(POSITIONS_KEY, b"")


KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
WRITES = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=2)), max_size=6)


@given(
    stored=st.dictionaries(KEYS, st.binary(max_size=2)), records=st.lists(st.tuples(WRITES, st.booleans()))
)
def test_the_state_equals_a_dict_that_saw_only_the_records_that_did_not_raise(
    stored: dict[bytes, bytes], records: list[tuple[list[tuple[bytes, bytes | None]], bool]]
) -> None:
    store = MemoryStore()
    store.apply(stored, 1)
    state, model = WriteBuffer(store, 100), dict(stored)
    for writes, raises in records:
        state.savepoint()
        before = dict(model)
        for key, value in writes:
            if value is None:
                state.delete(key)
                model.pop(key, None)
            else:
                state.put(key, value)
                model[key] = value
        if raises:
            state.undo()
            model = before
        assert list(state.scan(b"", b"z")) == sorted(model.items())
    store.apply(state.writes, 2)
    state.clear()
    assert list(state.scan(b"", b"z")) == list(store.scan(b"", b"z")) == sorted(model.items())
