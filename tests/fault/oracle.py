"""Says which of I1-I4 do not hold, from everything that the log holds of a processor. Pure; knows the core by its port.

The reference is the core itself, run offline over the input topics (`recomputed`). What is pending is found by letting
the core close every window of the state that the changelog holds (`pending`): each event must then have exactly one
outcome, and what comes out must be what a run without faults has brought.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.processor.core.step import ProcessorStep
from shared.errors import LoopwrightError
from shared.events import FEEDBACK, Batch, ExampleRevision, Feedback, Outcome, OutcomeKind, Tally, parse_union
from shared.records import Output, Record
from shared.stream.merge import MergeBuffer
from shared.stream.state_store import ENGINE_KEY_PREFIX, MemoryStore
from shared.stream.step import Tick
from shared.stream.write_buffer import WriteBuffer
from shared.topics import (
    CHAT_RESPONSES,
    DAY_MS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    TRAINING_BATCHES,
    WINDOW_DAYS,
)
from tests.fault.workload import INTENT, Sent

Place = tuple[str, int, int]
"""(topic, partition, offset)"""
Event = tuple[str, str]
"""(response_id, event_id)"""
Content = tuple[Any, ...]
"""What an example says, without what depends on when it was said."""

INPUTS = (CHAT_RESPONSES.name, FEEDBACK_EVENTS.name)
ALL = 1 << 40


@dataclass(frozen=True, slots=True)
class Seen:
    """What is committed in each topic, per partition in offset order, under the topics' shipped names."""

    records: dict[str, list[Record]]
    dead: list[Record]
    changelog: list[Record]

    def of(self, topic: str) -> list[Record]:
        return self.records.get(topic, [])


@dataclass(slots=True)
class Made:
    """What a run of the core brought: outputs by topic, and the places of the records that died."""

    outputs: dict[str, list[Output]] = field(default_factory=lambda: defaultdict(list))
    dead: set[Place] = field(default_factory=set)


def complaints(seen: Seen, sent: Sequence[Sent] = ()) -> list[str]:
    """What does not hold, each complaint with the name of its invariant; empty if all is well.

    Call it when the processor has consumed all of its inputs. `sent`: the log of intents, where there is one.
    """
    offline, left = recomputed(seen), pending(seen)
    outcomes = [Outcome.from_json(record.value) for record in seen.of(FEEDBACK_OUTCOMES.name)]
    waiting = [Outcome.from_json(output.value) for output in left.outputs[FEEDBACK_OUTCOMES.name]]
    batches = [Batch.from_json(record.value) for record in seen.of(TRAINING_BATCHES.name)]
    batches += [Batch.from_json(output.value) for output in left.outputs[TRAINING_BATCHES.name]]
    return [
        *_acknowledged_is_in_the_log(seen, sent),
        *_each_record_dies_once_or_not_at_all(seen, offline),
        *_each_event_has_one_outcome(seen, outcomes, waiting),
        *_what_is_said_to_be_batched_is_in_that_batch([*outcomes, *waiting], batches),
        *_each_revision_is_in_one_batch(batches),
        *_newest_revisions_equal_a_recomputation(batches, offline),
        *_each_event_counts_once(seen, batches, offline),
    ]


def names(found: Iterable[str]) -> set[str]:
    """The complaints' names: what stands before the colon."""
    return {complaint.split(":", 1)[0] for complaint in found}


# --- running the core ---------------------------------------------------------------------------------------------


def recomputed(seen: Seen) -> Made:
    """The pure core over the input topics, then until every window is closed."""
    made = Made()
    inputs: dict[int, list[Record]] = defaultdict(list)
    for topic in INPUTS:
        for record in seen.of(topic):
            inputs[record.partition].append(record)
    for partition, records in inputs.items():
        merge, store = MergeBuffer(INPUTS), MemoryStore()
        for record in records:
            merge.add(record)
        for topic in INPUTS:
            merge.mark_end(topic)
        _run(store, [*merge.take(ALL, ALL), *_closing(partition, seen)], made)
    return made


def pending(seen: Seen) -> Made:
    """What the changelog's state would bring if nothing came any more."""
    made = Made()
    for partition, state in state_of(seen).items():
        store = MemoryStore()
        store.apply(state, 0)
        _run(store, _closing(partition, seen), made)
    return made


def state_of(seen: Seen) -> dict[int, dict[bytes, bytes | None]]:
    """Per partition, what a compacted changelog holds; the engine's own keys left out."""
    state: dict[int, dict[bytes, bytes | None]] = defaultdict(dict)
    for record in seen.changelog:
        key = record.key or b""
        if record.value is None:
            state[record.partition].pop(key, None)
        elif not key.startswith(ENGINE_KEY_PREFIX):
            state[record.partition][key] = record.value
    return state


def _closing(partition: int, seen: Seen) -> list[Record | Tick]:
    """Ticks that cut every batch and close every window; many, as the core closes a bounded number at a time."""
    last = max((record.timestamp for topic in INPUTS for record in seen.of(topic)), default=0)
    cut = last + 2 * DAY_MS  # beyond what clocks may have jumped
    close = cut + (WINDOW_DAYS + 1) * DAY_MS
    return [Tick(partition, cut), *(Tick(partition, close + n * 60_000) for n in range(20))]


def _run(store: MemoryStore, records: Sequence[Record | Tick], made: Made) -> None:
    step = ProcessorStep()
    for record in records:
        overlay = WriteBuffer(store, 1_000_000)
        overlay.savepoint()
        try:
            outputs = list(step(overlay, record))
        except LoopwrightError:
            assert isinstance(record, Record)
            made.dead.add((record.topic, record.partition, record.offset))
            continue
        store.apply(overlay.writes, 0)
        for output in outputs:
            if isinstance(output, Output):  # and not a wish to read again: nothing is erased here
                made.outputs[output.topic].append(output)


# --- I1 -----------------------------------------------------------------------------------------------------------


def _acknowledged_is_in_the_log(seen: Seen, sent: Sequence[Sent]) -> Iterator[str]:
    logged: dict[Place, str] = {}
    for topic in INPUTS if sent else ():
        for record in seen.of(topic):
            logged[topic, record.partition, record.offset] = dict(record.headers).get(INTENT, b"").decode()
    for each in sent:
        place = (each.intent.topic, each.partition, each.offset)
        if each.acknowledged and logged.get(place) != str(each.intent.number):
            yield f"I1 unlogged: intent {each.intent.number} was acknowledged at {place}, which holds another or none"


def _each_record_dies_once_or_not_at_all(seen: Seen, offline: Made) -> Iterator[str]:
    """As often as it should: a dead letter is what became of a record that cannot be processed."""
    died = Counter(_died_at(letter) for letter in seen.dead)
    for place in sorted(died.keys() | offline.dead):
        count, should = died[place], place in offline.dead
        if count != should:
            yield f"I1 dead letters: {place} has {count}, offline {int(should)}"


def _died_at(letter: Record) -> Place:
    said = dict(letter.headers)
    return said["dl_topic"].decode(), int(said["dl_partition"]), int(said["dl_offset"])


def _each_event_has_one_outcome(
    seen: Seen, outcomes: Sequence[Outcome], waiting: Sequence[Outcome]
) -> Iterator[str]:
    """As many outcomes as records in the log, and no more than one that is not for a repetition."""
    died = {_died_at(letter) for letter in seen.dead}
    wanted: Counter[Event] = Counter()
    for record in seen.of(FEEDBACK_EVENTS.name):
        if (record.topic, record.partition, record.offset) not in died:
            event = _parsed(record)
            wanted[(event.response_id, event.event_id) if event else ("unreadable", str(record.offset))] += 1
    had, has = _counted(outcomes), _counted(waiting)
    for event_id in sorted(wanted.keys() | had.keys() | has.keys()):
        found = had[event_id] + has[event_id]
        told = f"{event_id} stands {wanted[event_id]} times in the log, and has {had[event_id]} outcomes"
        if has[event_id]:
            told += f" and is pending in {has[event_id]} states"
        if found < wanted[event_id]:
            yield f"I1 lost: {told}"
        elif found > wanted[event_id]:
            yield f"I1 twice: {told}"
    fates = _counted(each for each in [*outcomes, *waiting] if each.outcome not in _REPEATED)
    yield from (f"I1 fates: {event_id} has {count} of them" for event_id, count in fates.items() if count > 1)


_REPEATED = (OutcomeKind.DUPLICATE, OutcomeKind.LATE)


def _counted(outcomes: Iterable[Outcome]) -> Counter[Event]:
    return Counter((outcome.response_id, outcome.event_id) for outcome in outcomes)


def _parsed(record: Record) -> Feedback | None:
    try:
        return parse_union(FEEDBACK, record.value)
    except LoopwrightError:
        return None


def _what_is_said_to_be_batched_is_in_that_batch(
    outcomes: Sequence[Outcome], batches: Sequence[Batch]
) -> Iterator[str]:
    held = {
        (batch.batch_id, example.response_id, signal.event_id)
        for batch in batches
        for example in batch.examples
        for signal in example.signals
    }
    said = [each for each in outcomes if each.outcome is OutcomeKind.BATCHED]
    for each in said:
        if (each.batch_id, each.response_id, each.event_id) not in held:
            yield f"I1 batched: {each.response_id}/{each.event_id} is said to be in {each.batch_id}, and is not"
    told = {(each.response_id, each.event_id) for each in said}
    for event in sorted({(response_id, event_id) for _, response_id, event_id in held} - told):
        yield f"I1 batched: {event} is in a batch, and nothing says so"


# --- I2 -----------------------------------------------------------------------------------------------------------


def _each_revision_is_in_one_batch(batches: Sequence[Batch]) -> Iterator[str]:
    """And a batch id has one content per rewrite, its hash, and numbers without gaps."""
    contents: dict[tuple[str, int], str] = {}
    revisions: dict[tuple[str, int], str] = {}
    numbers: dict[tuple[str, int], set[int]] = defaultdict(set)
    for batch in batches:
        name = (batch.batch_id, batch.rewrite)
        if name in contents:
            same = "the same" if contents[name] == batch.content_hash else "other"
            yield f"I2 batch twice: {name} stands more than once in the log, with {same} content"
        contents[name] = batch.content_hash
        numbers[batch.line, batch.partition].add(batch.number)
        if Batch.hash_of(batch.examples) != batch.content_hash:
            yield f"I2 hash: that of {batch.batch_id} is not of its content"
        for example in batch.examples:
            identity = (example.response_id, example.revision)
            if revisions.setdefault(identity, batch.batch_id) != batch.batch_id:
                yield f"I2 revision twice: {identity} is in {revisions[identity]} and in {batch.batch_id}"
    for (line, partition), found in numbers.items():
        if sorted(found) != list(range(1, len(found) + 1)):
            yield f"I2 numbers: the batches of {line} in partition {partition} are {sorted(found)}"


# --- I3, I4 -------------------------------------------------------------------------------------------------------


def newest(examples: Iterable[ExampleRevision]) -> dict[str, Content]:
    """What the newest revision of each example says; without those that were taken back."""
    found: dict[str, ExampleRevision] = {}
    for example in examples:
        if example.response_id not in found or found[example.response_id].revision < example.revision:
            found[example.response_id] = example
    return {
        response_id: (e.line, e.version, e.messages, e.choices, e.user_id, e.signals)
        for response_id, e in found.items()
        if e.op == "upsert"
    }


def _newest_revisions_equal_a_recomputation(batches: Sequence[Batch], offline: Made) -> Iterator[str]:
    should_be = [Batch.from_json(output.value) for output in offline.outputs[TRAINING_BATCHES.name]]
    was = newest(example for batch in batches for example in batch.examples)
    should = newest(example for batch in should_be for example in batch.examples)
    for response_id in sorted(was.keys() | should.keys()):
        if was.get(response_id) != should.get(response_id):
            yield f"I3: {response_id} is {was.get(response_id)}, offline {should.get(response_id)}"


def _each_event_counts_once(seen: Seen, batches: Sequence[Batch], offline: Made) -> Iterator[str]:
    for batch in batches:
        for example in batch.examples:
            said = Counter(signal.event_id for signal in example.signals)
            for event_id, count in said.items():
                if count > 1:
                    yield f"I4: {example.response_id}/{event_id} stands {count} times in {batch.batch_id}"
    was = tallies(record.value for record in seen.of(FEEDBACK_TALLIES.name))
    should = tallies(output.value for output in offline.outputs[FEEDBACK_TALLIES.name])
    for name in sorted(was.keys() | should.keys()):
        if was.get(name) != should.get(name):
            yield f"I4 tallies: {name} is {was.get(name)}, offline {should.get(name)}"


def tallies(values: Iterable[bytes | None]) -> dict[tuple[str, str, int], dict[str, int]]:
    """The newest counters per (version, user, partition), without those that count nothing."""
    found: dict[tuple[str, str, int], dict[str, int]] = {}
    for value in values:
        tally = Tally.from_json(value)
        counters = tally.model_dump(include=_COUNTERS)
        found[tally.version, tally.user_id, tally.partition] = {k: v for k, v in counters.items() if v}
    return {name: counters for name, counters in found.items() if counters}


_COUNTERS = {"up", "down", "ratings", "rating_sum", "corrections", "comments", "preferences"}
