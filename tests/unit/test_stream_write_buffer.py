"""Tests of the write buffer: a step sees its writes at once, and they are undone if it raises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Oversized
from shared.stream.state_store import POSITIONS_KEY, MemoryStore
from shared.stream.write_buffer import WriteBuffer


def buffer_over(**stored: bytes) -> WriteBuffer:
    """Return a write buffer over a store with these contents and the engine's own key."""
    store = MemoryStore()
    store.apply({key.encode(): value for key, value in stored.items()} | {POSITIONS_KEY: b"{}"}, 1)
    return WriteBuffer(store, max_record_bytes=1_000)


def test_step_reads_its_own_writes() -> None:
    state = buffer_over(a=b"1")
    state.put(b"a", b"2")
    state.put(b"b", b"3")
    assert (state.get(b"a"), state.get(b"b")) == (b"2", b"3")
    state.delete(b"a")
    assert state.get(b"a") is None


def test_undo_returns_to_the_last_savepoint() -> None:
    state = buffer_over(a=b"1", b=b"1")
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


def test_scan_merges_store_and_writes_without_engine_keys() -> None:
    state = buffer_over(a=b"1", c=b"1", e=b"1")
    state.put(b"b", b"2")
    state.put(b"c", b"2")
    state.delete(b"e")
    assert list(state.scan(b"", b"\xff")) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"2")]
    assert list(state.scan(b"b", b"c")) == [(b"b", b"2")]


def test_scan_does_not_see_later_writes() -> None:
    state = buffer_over(a=b"1", b=b"1")
    keys = []
    for key, _ in state.scan(b"", b"\xff"):
        state.delete(key)
        state.put(key + b"x", b"2")
        keys.append(key)
    assert keys == [b"a", b"b"]
    assert [key for key, _ in state.scan(b"", b"\xff")] == [b"ax", b"bx"]


def test_oversized_value_is_refused_and_not_written() -> None:
    state = buffer_over()
    with pytest.raises(Oversized, match="at most 1000"):
        state.put(b"k", b"x" * 1_000)
    assert state.writes == {}


def test_step_cannot_write_engine_keys() -> None:
    with pytest.raises(ValueError, match="reserved for the engine"):
        buffer_over().put(POSITIONS_KEY, b"")


KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
WRITES = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=2)), max_size=6)


@given(
    stored=st.dictionaries(KEYS, st.binary(max_size=2)), records=st.lists(st.tuples(WRITES, st.booleans()))
)
def test_state_equals_a_dict_without_the_records_that_raised(
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
    layered = WriteBuffer(store, 1_000, state.writes)
    for key in {*model, *state.writes}:
        assert layered.get(key) == model.get(key)
    assert list(layered.scan(b"", b"z")) == sorted(model.items())
    layered.preload(dict.fromkeys(state.writes, b"stale"))
    assert all(layered.get(key) == model.get(key) for key in state.writes)
    store.apply(state.writes, 2)
    assert list(layered.scan(b"", b"z")) == list(store.scan(b"", b"z")) == sorted(model.items())
