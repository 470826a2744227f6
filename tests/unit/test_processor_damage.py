"""I13 in the processor's state: what cannot be read is set aside, and the partition and everyone else continue.

An earlier release may have stored anything: times before the year 1, parts that disagree, bytes that are not JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.processor.core.batches import BatchLimits
from services.processor.core.state import (
    OpenBatch,
    PendingExample,
    joined_key,
    pending_key,
    response_key,
    tally_key,
)
from services.processor.core.turn import CUT_AT_MOST
from shared.topics import DAY_MS, WINDOW_DAYS
from tests.unit.processor_driver import FILLER, ProcessorDriver, feedback, response

DAY = DAY_MS / 1000
CUT = 1_000.0
JOINED, RESPONSE, PENDING = joined_key(b"r1"), response_key(b"r1"), pending_key("assistant", b"r1")
TALLY = tally_key("assistant@base-00000000", "u_ann")
BATCH, CLOCK = b"b/assistant", b"m/clock"
EDGE_TIMES = (-(2**63), -62_135_647_200_000, -1, 0, 253_402_300_800_000, 10**30)
Damage = Callable[[bytes], bytes | None]


def _set(path: tuple[str, ...], new: Any) -> Damage:
    """Return a change of one part of a JSON value; an absent part is added."""

    def change(value: bytes) -> bytes:
        document = json.loads(value)
        part = document
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = new
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

    return change


def _without(name: str) -> Damage:
    def change(value: bytes) -> bytes:
        document = json.loads(value)
        document.pop(name, None)
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

    return change


def _bytes(new: bytes | None) -> Damage:
    return lambda value: new


ANY_VALUE = [None, b"", b"\xff", b"{", b"[]", b"null", b"[" * 5_000, b'{"line":1}', b'{"line":"assistant"}']
MALFORMED_PARTS: list[Any] = [
    5, "text", [{}], [{"role": "user"}], [{"index": 0, "text": 7}], [{"role": "nobody", "content": "x"}],
]  # fmt: skip
DAMAGES: list[tuple[str, bytes, Damage]] = [
    *((f"{key!r} is {new!r:.20}", key, _bytes(new)) for key in (JOINED, RESPONSE, PENDING) for new in ANY_VALUE),
    *((f"tally is {new!r:.20}", TALLY, _bytes(new)) for new in ANY_VALUE),
    *((f"batch is {new!r:.20}", BATCH, _bytes(new)) for new in ANY_VALUE[1:]),
    *((f"clock is {new!r:.20}", CLOCK, _bytes(new)) for new in ANY_VALUE),
    *((f"clock is {ms}", CLOCK, _bytes(json.dumps([ms, ms, ms, ms, ""]).encode())) for ms in EDGE_TIMES),
    *((f"response at {ms}", JOINED, _set(("responded_ms",), ms)) for ms in EDGE_TIMES),
    *((f"response stored at {ms}", RESPONSE, _set(("at_ms",), ms)) for ms in EDGE_TIMES),
    *((f"signal at {ms}", JOINED, _set(("signals", "e1", "at_ms"), ms)) for ms in EDGE_TIMES),
    *((f"event at {ms}", JOINED, _set(("events", "e1", "at_ms"), ms)) for ms in EDGE_TIMES),
    *((f"batch opened at {ms}", BATCH, _set(("opened_ms",), ms)) for ms in EDGE_TIMES),
    *((f"batch number {n}", BATCH, _set(("number",), n)) for n in (-1, 0, "7", None, 10**30)),
    *((f"batch with {n} examples", BATCH, _set(("examples",), n)) for n in (-5, 0, 1, 10**9)),
    *((f"batch of {n} bytes", BATCH, _set(("size",), n)) for n in (-5, 0, 10**12)),
    *((f"example of {n} bytes", PENDING, _set(("size",), n)) for n in (-5, 0, 10**12)),
    ("unknown kind", JOINED, _set(("signals", "e1", "kind"), "applause")),
    ("unknown value", JOINED, _set(("signals", "e1", "value"), "sideways")),
    ("slot without event", JOINED, _set(("slots", "u_ann|thumbs|0"), "gone")),
    ("signal without event", JOINED, _set(("events",), {})),
    *((f"messages are {new!r:.30}", RESPONSE, _set(("messages",), new)) for new in MALFORMED_PARTS),
    *((f"choices are {new!r:.30}", RESPONSE, _set(("choices",), new)) for new in MALFORMED_PARTS),
    ("negative revision", JOINED, _set(("revision",), -3)),
    ("waiting for strangers", PENDING, _set(("waiting",), ["e1", "stranger"])),
    ("tally counts words", TALLY, _set(("up",), "many")),
    ("tally of no time", TALLY, _set(("updated_at",), 7)),
    *((f"{key!r} lacks {name}", key, _without(name)) for key, name in (
        (JOINED, "line"), (JOINED, "since_ms"), (JOINED, "signals"), (JOINED, "events"), (JOINED, "version"),
        (RESPONSE, "messages"), (RESPONSE, "version"), (PENDING, "fresh"), (PENDING, "waiting"),
    )),
]  # fmt: skip


def prepared(limits: BatchLimits | None = None) -> ProcessorDriver:
    """Return a partition in which two responses have pending feedback."""
    driver = ProcessorDriver(limits)
    for response_id in ("r1", "r2"):
        driver.append(response(response_id))
        driver.append(feedback("thumbs", "up", "e1", response_id=response_id), 1)
    driver.append(feedback("thumbs", "up", "e2", user="u_bob", response_id="r2"), 2)
    return driver


def damage(driver: ProcessorDriver, key: bytes, change: Damage) -> None:
    driver.store.apply({key: change(driver.store.get(key) or b"{}")}, 0)


def let_everything_happen(driver: ProcessorDriver) -> None:
    """Touch the damaged response in every way, and let its window and its trace end."""
    driver.append(feedback("correction", "A language.", "e3", user="u_bob"), 3)
    driver.append(response("r1"), 4)
    driver.append(feedback("retract", "e1", "x1"), 5)
    driver.append(feedback("thumbs", "down", "e4", user="u_carl", response_id="r2"), 6)
    driver.tick(CUT)
    driver.append(feedback("thumbs", "down", "e5", user="u_dan"), CUT)
    driver.append(feedback("thumbs", "down", "e5", user="u_dan", response_id="r2"), CUT)
    driver.tick(2 * CUT)
    for window in (1, 2, 3):
        driver.advance(window * (WINDOW_DAYS * DAY + 3_600))
        driver.finish_erasures(driver.now_s)
        driver.advance(driver.now_s + 3 * 3_600)
        driver.finish_erasures(driver.now_s)


def outcomes_on(driver: ProcessorDriver, response_id: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for outcome in driver.decided:
        if outcome.response_id == response_id and outcome.event_id is not None:
            found.setdefault(outcome.event_id, []).append(str(outcome.outcome))
    return found


UNDAMAGED = {"e1": ["batched"], "e2": ["batched"], "e4": ["batched"], "e5": ["batched"]}


@pytest.mark.parametrize(("key", "change"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES])
@pytest.mark.parametrize("batched", [False, True], ids=["pending", "batched"])
def test_damaged_value_harms_its_own_response_at_most(key: bytes, change: Damage, batched: bool) -> None:
    driver = prepared()
    if batched:
        driver.tick(50)
    damage(driver, key, change)
    let_everything_happen(driver)
    assert driver.errors == []
    assert outcomes_on(driver, "r2") == UNDAMAGED
    on_damaged = outcomes_on(driver, "r1")
    assert all(len(kinds) == 1 for event_id, kinds in on_damaged.items() if event_id != "e1")
    assert {"e3", "x1", "e5"} <= set(on_damaged)
    assert len(driver.batches) == len({batch.batch_id for batch in driver.batches})
    left = [key for key, _ in driver.store.scan(b"a", b"z") if b"r1" in key or b"r2" in key]
    assert left == []


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([JOINED, RESPONSE, PENDING, BATCH, CLOCK, TALLY]),
            st.binary(max_size=30) | st.none(),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_any_bytes_in_the_state_stop_nothing(
    changes: list[tuple[bytes, bytes | None]], batched: bool
) -> None:
    driver = prepared()
    if batched:
        driver.tick(50)
    for key, new in changes:
        if not (key == BATCH and new is None):  # a lost state, which the engine detects
            damage(driver, key, _bytes(new))
    let_everything_happen(driver)
    assert driver.errors == []
    assert outcomes_on(driver, "r2") == UNDAMAGED


def test_pending_feedback_on_a_damaged_response_is_refused() -> None:
    driver = prepared()
    damage(driver, RESPONSE, _bytes(None))
    driver.tick(CUT)
    assert outcomes_on(driver, "r1") == {"e1": ["refused"]}
    refused = next(outcome for outcome in driver.decided if outcome.response_id == "r1")
    assert (refused.reason, "set aside" in (refused.detail or "")) == ("unusable", True)
    driver.append(feedback("thumbs", "down", "e9"), CUT + 1)
    assert outcomes_on(driver, "r1")["e9"] == ["refused"]


def test_unreadable_batch_number_is_never_used_again() -> None:
    driver = prepared(BatchLimits(examples=1))
    used = {batch.batch_id for batch in driver.batches}
    damage(driver, BATCH, _bytes(b"\xff"))
    driver.append(feedback("thumbs", "down", "e9", user="u_carl"), 9)
    driver.append(feedback("thumbs", "down", "e9", user="u_carl", response_id="r2"), 9)
    fresh = [batch for batch in driver.batches if batch.batch_id not in used]
    assert len(fresh) == 2
    assert fresh[1].number == fresh[0].number + 1


def test_batch_whose_counters_are_zero_is_cut_all_the_same() -> None:
    driver = prepared()
    damage(driver, BATCH, _bytes(OpenBatch(number=1, opened_ms=0).to_json()))
    driver.tick(CUT)
    assert outcomes_on(driver, "r2") == {"e1": ["batched"], "e2": ["batched"]}


def test_many_damaged_examples_are_set_aside_some_at_a_time() -> None:
    """One turn does a bounded part of the work, and none of it is forgotten."""
    driver = prepared()
    count = 10 * CUT_AT_MOST
    orphans = {
        pending_key("assistant", b"orphan-%04d" % n): PendingExample(True, 1, (f"o{n}",)).to_json()
        for n in range(count)
    }
    driver.store.apply(orphans, 0)
    turns = []
    for at in range(40, 80):
        outputs = len(driver.tick(at)) if at % 2 else len(driver.append(response(f"{FILLER}-{at}"), at))
        turns.append(outputs)
    assert max(turns) <= 2 * CUT_AT_MOST
    refused = [o for o in driver.decided if o.response_id.startswith("orphan")]
    assert len(refused) == count
    assert {str(outcome.reason) for outcome in refused} == {"unusable"}
    assert outcomes_on(driver, "r2") == {"e1": ["batched"], "e2": ["batched"]}
    assert not list(driver.store.scan(b"p/", b"p0"))


def test_wrong_sizes_never_make_a_batch_too_large() -> None:
    driver = ProcessorDriver(BatchLimits(size=20_000))
    for number in range(9):
        driver.append(response(f"r{number}"))
        driver.append(feedback("correction", "x" * 5_000, "e1", response_id=f"r{number}"), 1)
        key = pending_key("assistant", f"r{number}".encode())
        if driver.store.get(key) is not None:
            damage(driver, key, _set(("size",), 1))
        if driver.store.get(BATCH) is not None:
            damage(driver, BATCH, _set(("size",), 1))
    driver.tick(CUT)
    assert sum(len(batch.examples) for batch in driver.batches) == 9
    assert all(len(value) <= 20_000 for _, value in driver.logged_batches)


def test_state_of_a_release_without_indexes_is_taken_over() -> None:
    driver = prepared()
    without_indexes = {
        key: None for prefix in (b"d/", b"y/") for key, _ in driver.store.scan(prefix, prefix[:-1] + b"0")
    }
    driver.store.apply(without_indexes | {CLOCK: None}, 0)
    for at in (40, 41, 42):
        driver.tick(at)
    assert [batch.reason for batch in driver.batches] == ["age"]
    driver.advance(40 * DAY)
    driver.advance(80 * DAY)
    assert not list(driver.store.scan(b"t/", b"t0"))
