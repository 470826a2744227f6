"""Says what of I11 does not hold in everything that the log holds of a processor: nothing is left of an erased user
of what was made before the request, and of others nothing is missing. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from shared.events import Batch, ErasureReport, ExampleRevision
from shared.topics import ERASURE_REPORTS, ERASURE_REQUESTS, FEEDBACK_TALLIES, TRAINING_BATCHES
from tests.fault.oracle import Seen, pending, recomputed, state_of

FENCES = (b"f/", b"g/")
"""Keys of the state that may go on naming the subject: what keeps out what comes late."""


def erasure_complaints(seen: Seen, subject: str, new: str) -> list[str]:
    """What does not hold, each with its name; empty if all is well. `new`: how the names of responses begin that were
    made after the request. Call it when each partition has reported, and nothing `under_way` is left."""
    batches = [Batch.from_json(record.value) for record in seen.of(TRAINING_BATCHES.name)]
    batches += [Batch.from_json(output.value) for output in pending(seen).outputs[TRAINING_BATCHES.name]]
    offline = recomputed(seen).outputs[TRAINING_BATCHES.name]
    was = newest(batches)
    should = newest(Batch.from_json(output.value) for output in offline)
    return [
        *_each_partition_reports_once(seen, subject),
        *_nothing_is_left_in_batches(batches, subject, new),
        *_nothing_is_left_in_the_state(seen, subject, new),
        *_others_lost_nothing(was, should, subject, new),
    ]


def under_way(seen: Seen) -> list[bytes]:
    """The requests and late retractions that are not carried through yet. Each names its subject until then."""
    return [key for state in state_of(seen).values() for key in state if key.startswith(b"e/")]


def newest(batches: Iterable[Batch]) -> dict[str, ExampleRevision]:
    """What a reader of the topic ends with: of each batch its last rewrite, of each example its last revision."""
    last: dict[str, Batch] = {}
    for batch in batches:
        if batch.batch_id not in last or last[batch.batch_id].rewrite < batch.rewrite:
            last[batch.batch_id] = batch
    found: dict[str, ExampleRevision] = {}
    for batch in last.values():
        for example in batch.examples:
            before = found.get(example.response_id)
            if before is None or before.revision < example.revision:
                found[example.response_id] = example
    return found


def _each_partition_reports_once(seen: Seen, subject: str) -> Iterator[str]:
    asked = Counter(record.partition for record in seen.of(ERASURE_REQUESTS.name))
    reports = [
        ErasureReport.from_json(record.value) for record in seen.of(ERASURE_REPORTS.name) if record.value
    ]
    told = Counter(report.partition for report in reports if report.kind == "erasure")
    if told != Counter(set(asked)):
        yield f"I11 reports: of partitions {sorted(asked)} there are {dict(told)}"
    rewrites = {}
    for record in seen.of(TRAINING_BATCHES.name):
        batch = Batch.from_json(record.value)
        rewrites[batch.batch_id] = max(batch.rewrite, rewrites.get(batch.batch_id, 0))
    for report in reports:
        for batch_id, rewrite in report.batches.items():
            if rewrites.get(batch_id, -1) < rewrite:
                yield f"I11 reports: {batch_id} is said to be rewritten {rewrite} times, and is not"


def _nothing_is_left_in_batches(batches: Iterable[Batch], subject: str, new: str) -> Iterator[str]:
    last: dict[str, Batch] = {}
    for batch in batches:
        if batch.batch_id not in last or last[batch.batch_id].rewrite < batch.rewrite:
            last[batch.batch_id] = batch
    for batch in last.values():
        for example in batch.examples:
            if example.response_id.startswith(new) or example.op != "upsert":
                continue
            said = [signal.event_id for signal in example.signals if signal.user_id == subject]
            if example.user_id == subject or said:
                yield f"I11 batches: {example.response_id} in {batch.batch_id} still has {said or 'what it asked'}"


def _nothing_is_left_in_the_state(seen: Seen, subject: str, new: str) -> Iterator[str]:
    """Nor in the tallies that stand, but for what was said since."""
    name = subject.encode()
    for partition, state in state_of(seen).items():
        for key, value in state.items():
            about_new = new.encode() in key or key.startswith(b"t/")
            if not key.startswith(FENCES) and not about_new and (name in key or name in (value or b"")):
                yield f"I11 state: {key!r} of partition {partition} still names it"
    standing = {record.key: record.value for record in seen.of(FEEDBACK_TALLIES.name)}
    kept = [k for state in state_of(seen).values() for k in state if k.startswith(b"t/") and name in k]
    left = [key for key, value in standing.items() if value is not None and name in (key or b"")]
    if len(left) > len(kept):
        yield f"I11 tallies: {left} stand in the log, {sorted(kept)} in the state"


def _others_lost_nothing(
    was: dict[str, ExampleRevision], should: dict[str, ExampleRevision], subject: str, new: str
) -> Iterator[str]:
    for response_id in sorted(was.keys() | should.keys()):
        there, wanted = was.get(response_id), should.get(response_id)
        if wanted is not None and wanted.user_id == subject and not response_id.startswith(new):
            continue
        missing = _others(wanted, subject) - _others(there, subject)
        strange = _others(there, subject) - _others(wanted, subject)
        if missing or strange:
            yield f"I11 others: {response_id} lacks {sorted(missing)}, has besides {sorted(strange)}"


def _others(example: ExampleRevision | None, subject: str) -> set[tuple[str, str]]:
    if example is None or example.op != "upsert":
        return set()
    return {(s.event_id, str(s.value)) for s in example.signals if s.user_id != subject}
