"""Checks I1-I4 over everything that the log holds of a processor. Pure.

The reference is the processor's own core, run offline over the input topics (`recompute`). Pending events are found
by letting the core close every window of the state that the changelog holds (`drain`): each event must then have
exactly one outcome, and the outputs must equal those of a run without faults. The oracle knows only the core's step,
not how it encodes state.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.processor.core.erasure.rules import SEARCH_INTERVAL_MS
from services.processor.core.state import JUMP_MS
from services.processor.core.step import ProcessorStep
from shared.errors import LoopwrightError
from shared.events import (
    FEEDBACK,
    Batch,
    ChatResponse,
    ExampleRevision,
    Feedback,
    Message,
    Outcome,
    OutcomeKind,
    Tally,
    from_ms,
    parse_union,
)
from shared.records import Output, Record
from shared.stream.merge import MergeBuffer
from shared.stream.state_store import ENGINE_KEY_PREFIX, MemoryStore
from shared.stream.step import RereadComplete, RereadRequest, Tick
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
from tests.fault.workload import INTENT_HEADER, Sent

Place = tuple[str, int, int]
"""(topic, partition, offset)"""
Event = tuple[str, str]
"""(response_id, event_id)"""
Content = tuple[Any, ...]
"""The content of an example, without what depends on the time of its batch."""

INPUTS = (CHAT_RESPONSES.name, FEEDBACK_EVENTS.name)
UNLIMITED = 1 << 40
_COUNTERS = {"up", "down", "ratings", "rating_sum", "corrections", "comments", "preferences"}


@dataclass(frozen=True, slots=True)
class LogContents:
    """All committed records, per partition in offset order, under the topics' shipped names."""

    records: dict[str, list[Record]]
    dead: list[Record]
    changelog: list[Record]

    def topic(self, name: str) -> list[Record]:
        return self.records.get(name, [])


@dataclass(slots=True)
class CoreRun:
    """Results of running the core: outputs by topic, and the places of the records that became dead letters."""

    outputs: dict[str, list[Output]] = field(default_factory=lambda: defaultdict(list))
    dead: set[Place] = field(default_factory=set)


def violations(log: LogContents, sent: Sequence[Sent] = ()) -> list[str]:
    """Return the violations found, each starting with its name; empty if all invariants hold.

    The processor must have consumed all of its inputs. `sent` are the records that were meant to be in them.
    """
    offline, drained = recompute(log), drain(log)
    outcomes = [Outcome.from_json(record.value) for record in log.topic(FEEDBACK_OUTCOMES.name)]
    pending = [Outcome.from_json(output.value) for output in drained.outputs[FEEDBACK_OUTCOMES.name]]
    batches = [Batch.from_json(record.value) for record in log.topic(TRAINING_BATCHES.name)]
    batches += [Batch.from_json(output.value) for output in drained.outputs[TRAINING_BATCHES.name]]
    return [
        *_acknowledged_records_are_in_the_log(log, sent),
        *_dead_letters_equal_a_recomputation(log, offline),
        *_refused_responses_equal_a_recomputation(outcomes, offline),
        *_each_event_has_one_outcome(log, outcomes, pending),
        *_batched_outcomes_match_the_batches([*outcomes, *pending], batches),
        *_each_revision_is_in_one_batch(batches),
        *_newest_revisions_equal_a_recomputation(batches, offline),
        *_each_event_counts_once(log, batches, offline),
    ]


def violation_names(found: Iterable[str]) -> set[str]:
    """Return the names of violations: the text before the colon."""
    return {violation.split(":", 1)[0] for violation in found}


# --- running the core ---------------------------------------------------------------------------------------------


def recompute(log: LogContents) -> CoreRun:
    """Run the core over the input topics, then until every window is closed."""
    run = CoreRun()
    inputs: dict[int, list[Record]] = defaultdict(list)
    for topic in INPUTS:
        for record in log.topic(topic):
            inputs[record.partition].append(record)
    for partition, records in inputs.items():
        merge, store = MergeBuffer(INPUTS), MemoryStore()
        for record in records:
            merge.add(record)
        for topic in INPUTS:
            merge.mark_end(topic)
        _run_core(store, [*merge.take(UNLIMITED, UNLIMITED), *_closing_records(partition, log)], run)
    return run


def drain(log: LogContents) -> CoreRun:
    """Run the core over the changelog's state until every window is closed. All that is pending is output."""
    run = CoreRun()
    for partition, state in compacted_state(log).items():
        store = MemoryStore()
        store.apply(state, 0)
        _run_core(store, _closing_records(partition, log), run)
    return run


def compacted_state(log: LogContents) -> dict[int, dict[bytes, bytes | None]]:
    """Return per partition what the compacted changelog holds, without the engine's own keys."""
    state: dict[int, dict[bytes, bytes | None]] = defaultdict(dict)
    for record in log.changelog:
        key = record.key or b""
        if record.value is None:
            state[record.partition].pop(key, None)
        elif not key.startswith(ENGINE_KEY_PREFIX):
            state[record.partition][key] = record.value
    return state


def _closing_records(partition: int, log: LogContents) -> list[Record | Tick]:
    """Return a tick that cuts every batch, and records without effect that close every window.

    The core does a bounded part of it per record. The ticks at the end search for late retractions.
    """
    last = max((record.timestamp for topic in INPUTS for record in log.topic(topic)), default=0)
    cut = last + 2 * DAY_MS  # beyond what clocks may have jumped
    close = cut + (WINDOW_DAYS + 1) * DAY_MS
    return [
        Tick(partition, cut, last),
        *(_response_without_feedback(partition, f"closing-{n}", close + n * JUMP_MS) for n in range(20)),
        *(Tick(partition, close + n * SEARCH_INTERVAL_MS, close) for n in range(20, 30)),
    ]


def _response_without_feedback(partition: int, response_id: str, at_ms: int) -> Record:
    response = ChatResponse(
        line="closing",
        response_id=response_id,
        version="none",
        messages=(Message(role="user", content="?"),),
        created_at=from_ms(at_ms),
    )
    return Record(CHAT_RESPONSES.name, partition, 1 << 60, at_ms, response_id.encode(), response.to_json())


def _run_core(store: MemoryStore, records: Sequence[Record | Tick | RereadComplete], run: CoreRun) -> None:
    step = ProcessorStep()
    for record in records:
        buffer = WriteBuffer(store, 1_000_000)
        buffer.savepoint()
        try:
            outputs = list(step(buffer, record))
        except LoopwrightError:
            assert isinstance(record, Record)
            run.dead.add((record.topic, record.partition, record.offset))
            continue
        store.apply(buffer.writes, 0)
        rereads = [output.topic for output in outputs if isinstance(output, RereadRequest)]
        for output in outputs:
            if isinstance(output, Output):
                run.outputs[output.topic].append(output)
        # The reread finds nothing: what is searched for here was never in a batch.
        _run_core(
            store, [RereadComplete(topic, record.partition, record.timestamp) for topic in rereads], run
        )


# --- I1 -----------------------------------------------------------------------------------------------------------


def _acknowledged_records_are_in_the_log(log: LogContents, sent: Sequence[Sent]) -> Iterator[str]:
    logged: dict[Place, str] = {}
    for topic in INPUTS if sent else ():
        for record in log.topic(topic):
            number = dict(record.headers).get(INTENT_HEADER, b"").decode()
            logged[topic, record.partition, record.offset] = number
    for item in sent:
        place = (item.intent.topic, item.partition, item.offset)
        if item.acknowledged and logged.get(place) != str(item.intent.number):
            yield f"I1 unlogged: intent {item.intent.number} was acknowledged at {place}, but is not there"


def _dead_letters_equal_a_recomputation(log: LogContents, offline: CoreRun) -> Iterator[str]:
    """Check that each record that cannot be processed, and no other, has one dead letter."""
    dead = Counter(_origin(letter) for letter in log.dead)
    for place in sorted(dead.keys() | offline.dead):
        count, expected = dead[place], place in offline.dead
        if count != expected:
            yield f"I1 dead letters: {place} has {count}, offline {int(expected)}"


def _refused_responses_equal_a_recomputation(outcomes: Sequence[Outcome], offline: CoreRun) -> Iterator[str]:
    values = [output.value for output in offline.outputs[FEEDBACK_OUTCOMES.name]]
    expected = _refused_responses(map(Outcome.from_json, values))
    for refused, count in (expected - _refused_responses(outcomes)).items():
        yield f"I1 lost: {refused} has {count} outcomes less than offline"
    for refused, count in (_refused_responses(outcomes) - expected).items():
        yield f"I1 twice: {refused} has {count} outcomes more than offline"


def _refused_responses(outcomes: Iterable[Outcome]) -> Counter[tuple[str, str | None]]:
    return Counter((o.response_id, o.reason) for o in outcomes if o.event_id is None)


def _origin(letter: Record) -> Place:
    headers = dict(letter.headers)
    return headers["dl_topic"].decode(), int(headers["dl_partition"]), int(headers["dl_offset"])


def _each_event_has_one_outcome(
    log: LogContents, outcomes: Sequence[Outcome], pending: Sequence[Outcome]
) -> Iterator[str]:
    """Check that there are as many outcomes as records, and at most one of them that does not mark a repetition."""
    dead = {_origin(letter) for letter in log.dead}
    records: Counter[Event] = Counter()
    for record in log.topic(FEEDBACK_EVENTS.name):
        if (record.topic, record.partition, record.offset) not in dead:
            event = _parse(record)
            records[(event.response_id, event.event_id) if event else ("unreadable", str(record.offset))] += 1
    published, undecided = _count(outcomes), _count(pending)
    for event_id in sorted(records.keys() | published.keys() | undecided.keys()):
        count = published[event_id] + undecided[event_id]
        text = f"{event_id} is {records[event_id]} times in the log and has {published[event_id]} outcomes"
        if undecided[event_id]:
            text += f"; it is pending in {undecided[event_id]} states"
        if count < records[event_id]:
            yield f"I1 lost: {text}"
        elif count > records[event_id]:
            yield f"I1 twice: {text}"
    final = _count(
        outcome
        for outcome in [*outcomes, *pending]
        if not outcome.is_repetition and outcome.outcome is not OutcomeKind.LATE
    )
    yield from (f"I1 fates: {event_id} has {count} of them" for event_id, count in final.items() if count > 1)


def _count(outcomes: Iterable[Outcome]) -> Counter[Event]:
    """Count the outcomes of each event, without those of responses."""
    return Counter(
        (outcome.response_id, outcome.event_id) for outcome in outcomes if outcome.event_id is not None
    )


def _parse(record: Record) -> Feedback | None:
    try:
        return parse_union(FEEDBACK, record.value)
    except LoopwrightError:
        return None


def _batched_outcomes_match_the_batches(
    outcomes: Sequence[Outcome], batches: Sequence[Batch]
) -> Iterator[str]:
    in_batches = {
        (batch.batch_id, example.response_id, signal.event_id)
        for batch in batches
        for example in batch.examples
        for signal in example.signals
    }
    batched = [outcome for outcome in outcomes if outcome.outcome is OutcomeKind.BATCHED]
    for outcome in batched:
        if (outcome.batch_id, outcome.response_id, outcome.event_id) not in in_batches:
            yield f"I1 batched: {outcome.response_id}/{outcome.event_id} is not in {outcome.batch_id}"
    reported = {(outcome.response_id, outcome.event_id) for outcome in batched}
    for event in sorted({(response_id, event_id) for _, response_id, event_id in in_batches} - reported):
        yield f"I1 batched: {event} is in a batch, but has no such outcome"


# --- I2 -----------------------------------------------------------------------------------------------------------


def _each_revision_is_in_one_batch(batches: Sequence[Batch]) -> Iterator[str]:
    """Check also that a batch has one content per rewrite, the right hash, and a number without gaps before it."""
    hashes: dict[tuple[str, int], str] = {}
    revisions: dict[tuple[str, int], str] = {}
    numbers: dict[tuple[str, int], set[int]] = defaultdict(set)
    for batch in batches:
        name = (batch.batch_id, batch.rewrite)
        if name in hashes:
            same = "the same" if hashes[name] == batch.content_hash else "other"
            yield f"I2 batch twice: {name} is more than once in the log, with {same} content"
        hashes[name] = batch.content_hash
        numbers[batch.line, batch.partition].add(batch.number)
        if Batch.hash_of(batch.examples) != batch.content_hash:
            yield f"I2 hash: {batch.batch_id} has another content than its hash"
        for example in batch.examples:
            revision = (example.response_id, example.revision)
            if revisions.setdefault(revision, batch.batch_id) != batch.batch_id:
                yield f"I2 revision twice: {revision} is in {revisions[revision]} and in {batch.batch_id}"
    for (line, partition), found in numbers.items():
        if sorted(found) != list(range(1, len(found) + 1)):
            yield f"I2 numbers: the batches of {line} in partition {partition} are {sorted(found)}"


# --- I3, I4 -------------------------------------------------------------------------------------------------------


def newest(examples: Iterable[ExampleRevision]) -> dict[str, Content]:
    """Return the content of each example's newest revision, without retracted examples."""
    revisions: dict[str, ExampleRevision] = {}
    for example in examples:
        response_id = example.response_id
        if response_id not in revisions or revisions[response_id].revision < example.revision:
            revisions[response_id] = example
    return {
        response_id: (e.line, e.version, e.messages, e.choices, e.user_id, e.signals)
        for response_id, e in revisions.items()
        if e.op == "upsert"
    }


def _newest_revisions_equal_a_recomputation(batches: Sequence[Batch], offline: CoreRun) -> Iterator[str]:
    offline_batches = [Batch.from_json(output.value) for output in offline.outputs[TRAINING_BATCHES.name]]
    actual = newest(example for batch in batches for example in batch.examples)
    expected = newest(example for batch in offline_batches for example in batch.examples)
    for response_id in sorted(actual.keys() | expected.keys()):
        if actual.get(response_id) != expected.get(response_id):
            yield f"I3: {response_id} is {actual.get(response_id)}, offline {expected.get(response_id)}"


def _each_event_counts_once(log: LogContents, batches: Sequence[Batch], offline: CoreRun) -> Iterator[str]:
    for batch in batches:
        for example in batch.examples:
            counts = Counter(signal.event_id for signal in example.signals)
            for event_id, count in counts.items():
                if count > 1:
                    yield f"I4: {example.response_id}/{event_id} is {count} times in {batch.batch_id}"
    actual = tallies(record.value for record in log.topic(FEEDBACK_TALLIES.name))
    expected = tallies(output.value for output in offline.outputs[FEEDBACK_TALLIES.name])
    for name in sorted(actual.keys() | expected.keys()):
        if actual.get(name) != expected.get(name):
            yield f"I4 tallies: {name} is {actual.get(name)}, offline {expected.get(name)}"


def tallies(values: Iterable[bytes | None]) -> dict[tuple[str, str, int], dict[str, int]]:
    """Return the newest counters per (version, user, partition), without those that are zero.

    A tally that expired counts as it was before.
    """
    newest_counters: dict[tuple[str, str, int], dict[str, int]] = {}
    for value in values:
        if value is None:
            continue
        tally = Tally.from_json(value)
        counters = {name: count for name, count in tally.model_dump(include=_COUNTERS).items() if count}
        newest_counters[tally.version, tally.user_id, tally.partition] = counters
    return {name: counters for name, counters in newest_counters.items() if counters}
