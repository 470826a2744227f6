"""Checks I11 over everything that the log holds of a processor. Pure.

Nothing that an erased user made before the request may be left, and nothing of other users may be missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from shared.events import Batch, ErasureReport, ExampleRevision
from shared.topics import ERASURE_REPORTS, ERASURE_REQUESTS, FEEDBACK_TALLIES, TRAINING_BATCHES
from tests.fault.oracle import LogContents, compacted_state, drain, recompute

ERASED_USER_KEYS = (b"f/", b"g/")
"""Keys of the state that may name the subject after the erasure, to erase records that arrive late."""


def erasure_violations(log: LogContents, subject: str, new: str) -> list[str]:
    """Return the violations found, each starting with its name; empty if I11 holds.

    Each partition must have reported, and no erasure may be `in_progress`. `new` is the prefix of the response ids that
    were made after the request.
    """
    batches = [Batch.from_json(record.value) for record in log.topic(TRAINING_BATCHES.name)]
    batches += [Batch.from_json(output.value) for output in drain(log).outputs[TRAINING_BATCHES.name]]
    offline = recompute(log).outputs[TRAINING_BATCHES.name]
    actual = newest_examples(batches)
    expected = newest_examples(Batch.from_json(output.value) for output in offline)
    return [
        *_each_partition_reports_once(log, subject),
        *_nothing_is_left_in_batches(batches, subject, new),
        *_nothing_is_left_in_the_state(log, subject, new),
        *_others_lost_nothing(actual, expected, subject, new),
    ]


def in_progress(log: LogContents) -> list[bytes]:
    """Return the keys of erasures and late retractions that are not finished. Until then they name their subject."""
    return [key for state in compacted_state(log).values() for key in state if key.startswith(b"e/")]


def newest_batches(batches: Iterable[Batch]) -> list[Batch]:
    """Return the newest rewrite of each batch."""
    newest: dict[str, Batch] = {}
    for batch in batches:
        if batch.batch_id not in newest or newest[batch.batch_id].rewrite < batch.rewrite:
            newest[batch.batch_id] = batch
    return list(newest.values())


def newest_examples(batches: Iterable[Batch]) -> dict[str, ExampleRevision]:
    """Return the newest revision of each example in the newest rewrites, as a reader of the topic sees them."""
    newest: dict[str, ExampleRevision] = {}
    for batch in newest_batches(batches):
        for example in batch.examples:
            before = newest.get(example.response_id)
            if before is None or before.revision < example.revision:
                newest[example.response_id] = example
    return newest


def _each_partition_reports_once(log: LogContents, subject: str) -> Iterator[str]:
    requests = {record.partition for record in log.topic(ERASURE_REQUESTS.name)}
    reports = [
        ErasureReport.from_json(record.value) for record in log.topic(ERASURE_REPORTS.name) if record.value
    ]
    reported = Counter(report.partition for report in reports if report.kind == "erasure")
    if reported != Counter(requests):
        yield f"I11 reports: requested in partitions {sorted(requests)}, reported {dict(reported)}"
    rewrites: dict[str, int] = {}
    for record in log.topic(TRAINING_BATCHES.name):
        batch = Batch.from_json(record.value)
        rewrites[batch.batch_id] = max(batch.rewrite, rewrites.get(batch.batch_id, 0))
    for report in reports:
        for batch_id, rewrite in report.batches.items():
            if rewrites.get(batch_id, -1) < rewrite:
                yield f"I11 reports: rewrite {rewrite} of {batch_id} is reported, but not in the log"


def _nothing_is_left_in_batches(batches: Iterable[Batch], subject: str, new: str) -> Iterator[str]:
    for batch in newest_batches(batches):
        for example in batch.examples:
            if example.response_id.startswith(new) or example.op != "upsert":
                continue
            signals = [signal.event_id for signal in example.signals if signal.user_id == subject]
            if example.user_id == subject or signals:
                left = signals or "the response"
                yield f"I11 batches: {example.response_id} in {batch.batch_id} still has {left}"


def _nothing_is_left_in_the_state(log: LogContents, subject: str, new: str) -> Iterator[str]:
    """Check the tallies too. What the subject did after the request may be there."""
    name = subject.encode()
    for partition, state in compacted_state(log).items():
        for key, value in state.items():
            tally = (
                b"t/" + key.split(b"/", 2)[2] if key.startswith(b"y/") else key
            )  # y/ is their index by date
            has_tally = tally.startswith(b"t/") and tally in state
            may_stay = new.encode() in key or has_tally or key.startswith(ERASED_USER_KEYS)
            if not may_stay and (name in key or name in (value or b"")):
                yield f"I11 state: {key!r} of partition {partition} still names it"
    newest = {record.key: record.value for record in log.topic(FEEDBACK_TALLIES.name)}
    stored = [
        k for state in compacted_state(log).values() for k in state if k.startswith(b"t/") and name in k
    ]
    left = [key for key, value in newest.items() if value is not None and name in (key or b"")]
    if len(left) > len(stored):
        yield f"I11 tallies: {left} are in the log, {sorted(stored)} in the state"


def _others_lost_nothing(
    actual: dict[str, ExampleRevision], expected: dict[str, ExampleRevision], subject: str, new: str
) -> Iterator[str]:
    for response_id in sorted(actual.keys() | expected.keys()):
        example, reference = actual.get(response_id), expected.get(response_id)
        if reference is not None and reference.user_id == subject and not response_id.startswith(new):
            continue
        missing = _of_others(reference, subject) - _of_others(example, subject)
        extra = _of_others(example, subject) - _of_others(reference, subject)
        if missing or extra:
            yield f"I11 others: {response_id} lacks {sorted(missing)} and has in addition {sorted(extra)}"


def _of_others(example: ExampleRevision | None, subject: str) -> set[tuple[str, str]]:
    if example is None or example.op != "upsert":
        return set()
    return {(s.event_id, str(s.value)) for s in example.signals if s.user_id != subject}
