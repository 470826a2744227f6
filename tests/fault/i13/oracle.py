"""Judges a history: runs it with and without its hostile records, and names every violation of I13.

A violation starts with its name. What hostile records may legitimately change is in `CUT_DECIDES`, `SEARCH_DECIDES`,
`TOO_MANY` and `_dataset`, and what they may not do in `history.fair`; there is no other exception.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import orjson

from services.processor.core.erasure.tasks import MAX_SEARCHES, TASKS_AT_ONCE
from services.processor.core.join import MAX_LABELS
from shared.cloudevents import traceparent_of
from shared.dead_letter_replay import parse_dead_letter
from shared.errors import LoopwrightError
from shared.events import (
    FEEDBACK,
    Batch,
    ChatResponse,
    ErasureReport,
    ErasureRequest,
    Feedback,
    LogRecord,
    Outcome,
    OutcomeKind,
    RefusalReason,
    ResponseSample,
    Retract,
    Tally,
    parse_union,
    to_ms,
)
from shared.records import Output, Record
from shared.topics import (
    CHAT_RESPONSES,
    DAY_MS,
    DEAD_LETTERS,
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    RESPONSE_SAMPLES,
    TRAINING_BATCHES,
    WINDOW_DAYS,
)
from tests.fault.i13.history import History
from tests.fault.i13.partition_run import CLOSER, PartitionRun, RunResult

Event = tuple[str, str]
"""(response_id, event_id)"""
Fate = tuple[str, str, str | None]
"""(outcome, line, reason)"""

MAX_HEADER_BYTES = 1_024
"""Largest header of an output: no producer may make ours grow."""
MAX_STATE_BYTES = 600_000
"""Largest value in the state besides responses: what a batch holds, and memory of what was said before."""
MAX_TASKS = MAX_SEARCHES + TASKS_AT_ONCE
"""Most erasure tasks in the state, of which erasures of users are not bounded: only operators can order them."""
KEPT_PREFIXES = (b"b/", b"t/", b"m/", b"w/")
"""Keys that may outlive every window: the open batches' numbers, tallies, and rewrites' numbers."""
READERS: dict[str, type[LogRecord]] = {
    FEEDBACK_OUTCOMES.name: Outcome,
    FEEDBACK_TALLIES.name: Tally,
    RESPONSE_SAMPLES.name: ResponseSample,
    TRAINING_BATCHES.name: Batch,
    ERASURE_REPORTS.name: ErasureReport,
}
CUT_DECIDES = frozenset({"batched", "superseded", "retracted", "erased"})
"""Outcomes of an event that was in the open batch: `batched` if it was still there when the batch was cut.

When that is, all users of a line decide together. With batches of one example, every revision is cut at once, so that
no difference is allowed then."""
SEARCH_DECIDES = frozenset({"duplicate", "unmatched"})
"""Outcomes of a retraction of nothing: `duplicate` if the batches are still searched for another of the same event.

When they are searched, all retractions of a partition decide together."""
MAYBE_APPLIED = SEARCH_DECIDES | {"applied_retract"}
"""Outcomes of a retraction that came before its event: see `_early_retractions`."""
TOO_MANY = str(RefusalReason.TOO_MANY)
"""Why an event on a crowded response may be refused (`_crowded`): more users spoke than an example has room for.

The memory of what they said is bounded too, so a repetition of a comment may be taken for another one.
"""


def violations(history: History) -> list[str]:
    """Return the violations of one history, each starting with its name."""
    full = PartitionRun(history).run()
    alone = PartitionRun(history.without_hostile()).run()
    return [
        *full.failures,
        *(f"without hostile records: {failure}" for failure in alone.failures),
        *_only_unreadable_records_die(full),
        *_every_event_has_one_outcome(full),
        *_outputs_can_be_read(full),
        *_state_is_bounded(full),
        *_honest_outcomes_are_the_same(history, full, alone),
        *_honest_data_is_the_same(full, alone),
        *_traces_belong_to_their_event(full),
        *_batches_are_cut_in_time(history, full),
        *_rereads_are_rare(full),
        *_erasures_are_reported(full),
    ]


def name_of(violation: str) -> str:
    """Return the name of a violation."""
    return violation.split(":", maxsplit=1)[0]


# --- one run ------------------------------------------------------------------------------------------------------


def parse_event(record: Record) -> Feedback | None:
    """Return the feedback event of a record, or None if the record cannot be read or is in the wrong place."""
    try:
        event = parse_union(FEEDBACK, record.value)
    except LoopwrightError:
        return None
    return event if record.key == event.response_id.encode() else None


def _is_readable(record: Record) -> bool:
    if record.topic == FEEDBACK_EVENTS.name:
        return parse_event(record) is not None
    try:
        if record.topic == CHAT_RESPONSES.name:
            return record.key == ChatResponse.from_json(record.value).response_id.encode()
        ErasureRequest.from_json(record.value)
    except LoopwrightError:
        return False
    return True


def _only_unreadable_records_die(run: RunResult) -> Iterator[str]:
    dead: Counter[tuple[str, int]] = Counter()
    for output in run.outputs(DEAD_LETTERS.name):
        letter = parse_dead_letter(Record(output.topic, 0, 0, 0, output.key, output.value, output.headers))
        dead[letter.origin.topic, letter.origin_offset or 0] += 1
        if _is_readable(run.records[letter.origin.topic, letter.origin_offset or 0]):
            yield f"dead letter: {letter.origin.error_class}: {letter.origin.message}"
    for place, record in run.records.items():
        if not _is_readable(record) and dead[place] != 1 and not run.failures:
            yield f"dead letters of an unreadable record: {dead[place]} of {record.topic} {record.value!r:.200}"


def _outcomes(run: RunResult) -> dict[Event, list[dict[str, Any]]]:
    found: dict[Event, list[dict[str, Any]]] = defaultdict(list)
    for output in run.outputs(FEEDBACK_OUTCOMES.name):
        outcome = orjson.loads(output.value or b"")
        if outcome.get("event_id") is not None:
            found[outcome["response_id"], outcome["event_id"]].append(outcome)
    return found


def _may_be_lost_or_repeated(run: RunResult, response_id: str, count: int, sent: int) -> bool:
    """Damage to what is stored for a response takes along which of its events have an outcome."""
    return response_id in run.damaged and count <= 2 * sent


def _every_event_has_one_outcome(run: RunResult) -> Iterator[str]:
    if run.failures:
        return
    sent, outcomes = _sent(run), _outcomes(run)
    for event in sent.keys() | outcomes.keys():
        response_id, count = event[0], len(outcomes[event])
        if response_id.startswith(CLOSER) or _may_be_lost_or_repeated(run, response_id, count, sent[event]):
            continue
        if count != sent[event]:
            kinds = [outcome["outcome"] for outcome in outcomes[event]]
            yield f"outcomes: {event} is {sent[event]} times in the log and has {kinds}"


def _outputs_can_be_read(run: RunResult) -> Iterator[str]:
    for output in run.log:
        is_long = any(len(name) + len(value) > MAX_HEADER_BYTES for name, value in output.headers)
        if is_long and output.topic != DEAD_LETTERS.name:
            yield f"header: {output.topic} has one of more than {MAX_HEADER_BYTES} bytes"
        reader = READERS.get(output.topic)
        if reader is not None and output.value is not None:
            try:
                reader.from_json(output.value)
            except LoopwrightError as error:
                yield f"unreadable output: {error}"


def _state_is_bounded(run: RunResult) -> Iterator[str]:
    for key, value in run.state.items():
        if len(value) > MAX_STATE_BYTES and not key.startswith(b"a/"):
            yield f"bounded: {key!r:.200} has {len(value)} bytes"
    tasks = sum(key.startswith((b"e/now/", b"e/find/")) for key in run.state)
    if tasks > MAX_TASKS:
        yield f"bounded: {tasks} erasure tasks wait"
    if run.failures:
        return
    for key in run.final_state:
        if not key.startswith(KEPT_PREFIXES) and CLOSER.encode() not in key:
            yield f"bounded: {key!r:.200} is left after all windows"


def _traces_belong_to_their_event(run: RunResult) -> Iterator[str]:
    traces: dict[Event, set[str | None]] = defaultdict(lambda: {None})
    for record in run.records.values():
        if record.topic == FEEDBACK_EVENTS.name and (event := parse_event(record)) is not None:
            traces[event.response_id, event.event_id].add(traceparent_of(record.headers))
    for output in run.outputs(FEEDBACK_OUTCOMES.name):
        outcome, trace = orjson.loads(output.value or b""), traceparent_of(output.headers)
        event_id = outcome.get("event_id")
        if (
            trace is not None
            and event_id is not None
            and trace not in traces[outcome["response_id"], event_id]
        ):
            yield f"trace: the outcome of {event_id} has another event's traceparent {trace[:80]}"


def _batches_are_cut_in_time(history: History, run: RunResult) -> Iterator[str]:
    """Check that nothing waits in an open batch while records show that the batch is old enough."""
    if run.failures or run.damaged:
        return
    stream_ms: list[int] = []
    events: dict[Event, int] = {}
    responses: dict[str, int] = {}
    for number, record in enumerate(filter(_is_readable, run.records.values())):
        stream_ms.append(max(record.timestamp, stream_ms[-1] if stream_ms else 0))
        if record.topic == CHAT_RESPONSES.name:
            responses.setdefault((record.key or b"").decode(), number)
        elif record.topic == FEEDBACK_EVENTS.name and (event := parse_event(record)) is not None:
            events.setdefault((event.response_id, event.event_id), number)
    for (response_id, event_id), outcomes in _outcomes(run).items():
        batched = [o for o in outcomes if o["outcome"] == OutcomeKind.BATCHED]
        if len(batched) != len(outcomes) or response_id not in responses:
            continue
        waits_from = max(events[response_id, event_id], responses[response_id])
        due_ms = stream_ms[waits_from] + history.limits.age_ms
        shown_by = bisect_left(stream_ms, due_ms, waits_from)
        decided_ms = to_ms(datetime.fromisoformat(batched[0]["decided_at"]))
        if shown_by < len(stream_ms) and decided_ms > stream_ms[shown_by]:
            late_ms = decided_ms - stream_ms[shown_by]
            yield f"age: ({response_id!r}, {event_id!r}) is in a batch that was cut {late_ms} ms after it was due"


def _rereads_are_rare(run: RunResult) -> Iterator[str]:
    """Check that only an erasure, or a window that is over, has batches read again."""
    records = [
        record for record in run.records.values() if not (record.key or b"").startswith(CLOSER.encode())
    ]
    erasures = any(record.topic == ERASURE_REQUESTS.name for record in records)
    times = [record.timestamp for record in records]
    if run.damaged or erasures or not times or max(times) - min(times) >= WINDOW_DAYS * DAY_MS:
        return
    ordered = sum(key.startswith(b"e/find/") for key in run.state)
    if ordered or run.rereads_in_time:
        yield f"reread: {ordered} ordered and {run.rereads_in_time} begun, although no window was over"


def _erasures_are_reported(run: RunResult) -> Iterator[str]:
    if run.failures:
        return
    reports = [orjson.loads(output.value or b"") for output in run.outputs(ERASURE_REPORTS.name)]
    reported = {(report["subject"], report["request_id"]) for report in reports}
    for record in run.records.values():
        if record.topic == ERASURE_REQUESTS.name and _is_readable(record):
            request = ErasureRequest.from_json(record.value)
            if (request.subject, request.request_id) not in reported:
                yield f"report: {request.request_id} of {request.subject} has none"


# --- two runs: nothing that others do changes what happens to honest users ----------------------------------------


def _honest_events(run: RunResult) -> set[Event]:
    events = (parse_event(run.records[place]) for place in run.honest if place[0] == FEEDBACK_EVENTS.name)
    return {(event.response_id, event.event_id) for event in events if event is not None}


def _honest_outcomes_are_the_same(history: History, full: RunResult, alone: RunResult) -> Iterator[str]:
    if full.failures or alone.failures:
        return
    with_others, without, crowded = _outcomes(full), _outcomes(alone), _crowded(full)
    sent, sent_alone, retractions = _sent(full), _sent(alone), _honest_retractions(alone)
    early = _early_retractions(alone).keys()
    for event in sorted(_honest_events(alone)):
        mine, expected = _fates(with_others[event]), _fates(without[event])
        by_others = sent[event] - sent_alone[event]
        if event[0] in crowded and (TOO_MANY in {fate[2] for fate in mine} or _repeated(expected)):
            continue
        if event in early:  # applied if the event came, and was in a batch, before the search
            mine, expected = _regardless(mine, MAYBE_APPLIED), _regardless(expected, MAYBE_APPLIED)
        if history.limits.examples > 1:
            mine, expected = _regardless(mine, CUT_DECIDES), _regardless(expected, CUT_DECIDES)
        if event in retractions:
            mine, expected = _regardless(mine, SEARCH_DECIDES), _regardless(expected, SEARCH_DECIDES)
        # Each record under this id has an outcome, also those that others sent; the honest ones have theirs.
        if expected - mine or (mine - expected).total() > by_others:
            yield f"interference: {event} has {dict(mine)}, and {dict(expected)} without hostile records"


def _honest_retractions(run: RunResult) -> set[Event]:
    events = (parse_event(run.records[place]) for place in run.honest if place[0] == FEEDBACK_EVENTS.name)
    return {(e.response_id, e.event_id) for e in events if isinstance(e, Retract)}


def _repeated(fates: Counter[Fate]) -> bool:
    return any(outcome == "duplicate" for outcome, _, _ in fates)


def _early_retractions(run: RunResult) -> dict[Event, Event]:
    """Return the retractions that are in the log before the event that they take back, and that event.

    If the wait of one is over when the event comes, the batches are searched for it. Whether the event is in a batch by
    then depends on when the search runs, which all retractions of a partition decide together. If it is found, it is
    removed, as its author wished.
    """
    first: dict[Event, int] = {}
    targets: dict[Event, Event] = {}
    for number, record in enumerate(run.records.values()):
        event = parse_event(record) if record.topic == FEEDBACK_EVENTS.name else None
        if event is not None:
            name = (event.response_id, event.event_id)
            first.setdefault(name, number)
            if isinstance(event, Retract):
                targets[name] = (event.response_id, event.value)
    return {name: target for name, target in targets.items() if first.get(target, -1) > first[name]}


def _sent(run: RunResult) -> Counter[Event]:
    """Return how often each event is in the log."""
    events = (parse_event(record) for record in run.records.values() if record.topic == FEEDBACK_EVENTS.name)
    return Counter((event.response_id, event.event_id) for event in events if event is not None)


def _fates(outcomes: list[dict[str, Any]]) -> Counter[Fate]:
    """Return what users learn about an event, besides the number and time of its batch."""
    return Counter((o["outcome"], o["line"], o.get("reason")) for o in outcomes)


def _regardless(fates: Counter[Fate], alike: frozenset[str]) -> Counter[Fate]:
    """Return the fates without the difference between some outcomes: see `CUT_DECIDES` and `SEARCH_DECIDES`."""
    regardless: Counter[Fate] = Counter()
    for (outcome, line, reason), count in fates.items():
        regardless["/".join(sorted(alike)) if outcome in alike else outcome, line, reason] += count
    return regardless


def _crowded(run: RunResult) -> set[str]:
    """Return the responses about which more users spoke than an example has room for."""
    users: dict[str, set[str]] = defaultdict(set)
    for record in run.records.values():
        if record.topic == FEEDBACK_EVENTS.name and (event := parse_event(record)) is not None:
            users[event.response_id].add(event.user_id)
    return {response_id for response_id, all_users in users.items() if len(all_users) > MAX_LABELS}


def _honest_data_is_the_same(full: RunResult, alone: RunResult) -> Iterator[str]:
    if full.failures or alone.failures:
        return
    users = {
        user for user in map(_author, (alone.records[place] for place in alone.honest)) if user is not None
    }
    left_out = set(_early_retractions(alone).values())
    with_others, without = _dataset(full, users, left_out), _dataset(alone, users, left_out)
    for response_id in sorted((with_others.keys() | without.keys()) - _crowded(full)):
        if with_others.get(response_id) != without.get(response_id):
            yield (
                f"interference: the example {response_id} has {with_others.get(response_id)}, and "
                f"{without.get(response_id)} without hostile records"
            )
    mine, expected = _tallies(full, users), _tallies(alone, users)
    for name in sorted(mine.keys() | expected.keys()):
        if mine.get(name) != expected.get(name):
            yield f"interference: the tally {name} is {mine.get(name)}, and {expected.get(name)} without others"


def _author(record: Record) -> str | None:
    user: str | None = orjson.loads(record.value or b"{}").get("user_id")
    return user


def _dataset(run: RunResult, users: set[str], left_out: set[Event]) -> dict[str, Any]:
    """Return the honest users' signals in the newest revision of each example, without those `left_out`.

    Signals of other users on the same response are left out: they may stand next to the honest ones.
    """
    batches: dict[str, dict[str, Any]] = {}
    for output in run.outputs(TRAINING_BATCHES.name):
        batch = orjson.loads(output.value or b"")
        before = batches.get(batch["batch_id"])
        if before is None or before["rewrite"] < batch["rewrite"]:
            batches[batch["batch_id"]] = batch
    newest: dict[str, dict[str, Any]] = {}
    for batch in batches.values():
        for example in batch["examples"]:
            before = newest.get(example["response_id"])
            if before is None or before["revision"] < example["revision"]:
                newest[example["response_id"]] = example
    found = {}
    for response_id, example in newest.items():
        signals = [
            signal
            for signal in example.get("signals", ())
            if signal["user_id"] in users and (response_id, signal["event_id"]) not in left_out
        ]
        if signals:
            content = {
                name: example.get(name) for name in ("line", "version", "user_id", "messages", "choices")
            }
            found[response_id] = (content, sorted(signals, key=lambda signal: str(signal["event_id"])))
    return found


def _tallies(run: RunResult, users: set[str]) -> dict[bytes, dict[str, Any]]:
    newest: dict[bytes, Output] = {}
    for output in run.outputs(FEEDBACK_TALLIES.name):
        newest[output.key or b""] = output
    found = {}
    for key, output in newest.items():
        tally = orjson.loads(output.value) if output.value else {}
        if tally.get("user_id") in users:
            found[key] = {name: value for name, value in tally.items() if name != "updated_at"}
    return found
