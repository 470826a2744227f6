"""Mistakes that I13 forbids, each built in on purpose. The oracle must catch every one.

A mutation replaces inner parts of the processor and the engine, by name, so renaming these must update it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

from services.processor.core import join, outbox, wire
from services.processor.core.join import Change
from services.processor.core.outbox import Outbox
from services.processor.core.state import JoinedResponse, StoredValue
from services.processor.core.turn import PartitionTurn
from shared.errors import Rejected
from shared.events import Feedback, OutcomeKind, RefusalReason, Retract, to_ms
from shared.stream import slice_runner
from shared.stream.partition import OwnedPartition
from shared.stream.step import Tick
from tests.fault.i13 import generate
from tests.fault.i13.generate import Attack

Build = Callable[[ExitStack], None]
"""Builds a mistake in; the stack takes it out again."""
STOPS = frozenset({"raised", "halted", "dead letter"})
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One mistake. `expected` are the violations of which at least one must be found."""

    name: str
    build: Build
    expected: frozenset[str]
    attacks: tuple[Attack, ...] = ()
    """The attacks that find it soonest; any, if empty."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            self.build(stack)
            yield


def _replace(stack: ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace an attribute by what `make` makes of it."""
    stack.enter_context(patch.object(owner, name, make(getattr(owner, name))))


# --- times --------------------------------------------------------------------------------------------------------


def unclamped_times(stack: ExitStack) -> None:
    """Times are kept as the user states them, and cannot all be written."""

    def clamped_ms(event: Feedback, now_ms: int) -> int:
        return now_ms if event.occurred_at is None else to_ms(event.occurred_at)

    _replace(stack, join, "_clamped_ms", lambda _original: clamped_ms)
    _replace(stack, wire, "EARLIEST_MS", lambda _original: -(10**15))
    _replace(stack, wire, "rfc3339", lambda _original: _strict_rfc3339)


def _strict_rfc3339(ms: int) -> str:
    return (EPOCH + timedelta(milliseconds=ms)).isoformat().replace("+00:00", "Z")


def wall_clock_expires(stack: ExitStack) -> None:
    """A tick carries the host's clock, and its time expires data."""

    def take_slice(original: Any) -> Any:
        def take(self: OwnedPartition, *args: Any, clock_ms: int, **kwargs: Any) -> Any:
            part = original(self, *args, clock_ms=clock_ms, **kwargs)
            if not part.records and self.merge_buffer.is_idle():
                part.tick = Tick(self.number, clock_ms, clock_ms)
            return part

        return take

    def init(original: Any) -> Any:
        def make(self: PartitionTurn, store: Any, cause: Any, limits: Any) -> None:
            original(self, store, cause, limits)
            if isinstance(cause, Tick):
                self.is_input, self._clock.stream_ms = True, cause.timestamp

        return make

    _replace(stack, OwnedPartition, "take_slice", take_slice)
    _replace(stack, PartitionTurn, "__init__", init)


def ages_only_on_ticks(stack: ExitStack) -> None:
    """Open batches are cut by age on ticks only, which a busy partition does not get."""

    def cut_due(original: Any) -> Any:
        def cut(self: PartitionTurn) -> None:
            if not self.is_input:
                original(self)

        return cut

    _replace(stack, PartitionTurn, "cut_due_batches", cut_due)


# --- refusals -----------------------------------------------------------------------------------------------------


def refusals_are_dead_letters(stack: ExitStack) -> None:
    """What is valid but cannot be applied raises."""

    def refuse(_self: Change, event_id: str | None, reason: RefusalReason, detail: str) -> None:
        raise Rejected(f"{reason} {event_id}: {detail}")

    _replace(stack, Change, "refuse", lambda _original: refuse)


def garbage_halts(stack: ExitStack) -> None:
    """Records that cannot be read count towards the limit that halts a partition."""
    _replace(stack, slice_runner, "is_unexpected", lambda _original: lambda _error: True)


def limit_comes_before_the_kind(stack: ExitStack) -> None:
    """A response takes a number of events, whoever sends them, and retractions count."""

    def on_feedback(original: Any) -> Any:
        def limited(joined: JoinedResponse, waiting: Any, event: Feedback, *rest: Any) -> Change:
            if len(joined.events) < join.MAX_USER_EVENTS or joined.expired:
                return original(joined, waiting, event, *rest)  # type: ignore[no-any-return]
            change = Change(joined, set(waiting), changed=False)
            change.refuse(event.event_id, RefusalReason.TOO_MANY, "too many events on one response")
            return change

        return limited

    _replace(stack, join, "on_feedback", on_feedback)


def no_limits(stack: ExitStack) -> None:
    """Feedback of any size and number is kept."""
    _replace(stack, join, "_no_room_for", lambda _original: lambda *_args: None)
    _replace(stack, join, "_bound_memory", lambda _original: lambda *_args: None)


# --- what belongs to whom -----------------------------------------------------------------------------------------


def anyone_retracts(stack: ExitStack) -> None:
    """A retraction applies whoever sent it."""

    def retract(original: Any) -> Any:
        def apply(change: Change, event: Retract) -> None:
            target = change.joined.events.get(event.value)
            if target is None or target.kind == "retract":
                original(change, event)
                return
            change.drop_signal(event.value, OutcomeKind.RETRACTED)
            change.decide(event.event_id, OutcomeKind.APPLIED_RETRACT)

        return apply

    _replace(stack, join, "_retract", retract)


def second_response_wins(stack: ExitStack) -> None:
    """A response that is recorded again replaces the first."""

    def on_response(original: Any) -> Any:
        def replacing(joined: JoinedResponse | None, stored: Any, response: Any, *rest: Any) -> Change:
            if joined is None or joined.expired or not joined.answered or stored is None:
                return original(joined, stored, response, *rest)  # type: ignore[no-any-return]
            joined.version, joined.choices = response.version, response.valid_choices
            return Change(joined, set())

        return replacing

    _replace(stack, join, "on_response", on_response)


def borrowed_traceparent(stack: ExitStack) -> None:
    """An outcome carries the trace of the record that happened to cause it."""
    _replace(stack, Outbox, "_is_own", lambda _original: lambda _self, _key, _event_id: True)
    _replace(
        stack, Outbox, "line_of", lambda _original: lambda _self, _key, joined, event: joined.line_of(event)
    )


def unbounded_traceparent(stack: ExitStack) -> None:
    """The `traceparent` of any producer is copied, whatever it is."""

    def traceparent_of(headers: Any) -> str | None:
        return dict(headers).get("traceparent", b"").decode("ascii", "replace") or None

    _replace(stack, outbox, "traceparent_of", lambda _original: traceparent_of)


# --- stored values ------------------------------------------------------------------------------------------------


def one_example_stops_the_cut(stack: ExitStack) -> None:
    """An example that cannot be rendered raises, and no batch of its line is cut any more."""

    def rendered(original: Any) -> Any:
        def render(self: PartitionTurn, key: bytes, joined: Any) -> bytes:
            example = original(self, key, joined)
            if example is None:
                raise Rejected(f"pending example {key!r} has lost its response")
            return bytes(example)

        return render

    _replace(stack, PartitionTurn, "_rendered", rendered)


def damage_is_not_healed(stack: ExitStack) -> None:
    """A stored value that cannot be read raises."""

    def read(kind: type[StoredValue], value: bytes) -> StoredValue:
        return kind.from_json(value)

    stack.enter_context(patch.object(StoredValue, "read", classmethod(read)))


def retractions_order_rereads(stack: ExitStack) -> None:
    """A retraction of an unknown event has all batches read again at once."""

    def retract(original: Any) -> Any:
        def search(change: Change, event: Retract) -> None:
            original(change, event)
            if event.value not in change.joined.events:
                change.searches.append(
                    join.BatchSearch(event.value, event.user_id, event.event_id, OutcomeKind.UNMATCHED)
                )

        return search

    _replace(stack, join, "_retract", retract)


FEEDBACK = (generate.send_feedback, generate.write_foreign_records)
MUTATIONS = (
    Mutation("refusals are dead letters", refusals_are_dead_letters, frozenset({"dead letter"})),
    Mutation(
        "wall clock expires",
        wall_clock_expires,
        frozenset({"interference"}),
        (generate.break_the_host_clock,),
    ),
    Mutation("ages only on ticks", ages_only_on_ticks, frozenset({"age"})),
    Mutation("garbage halts", garbage_halts, frozenset({"halted"}), (generate.flood,)),
    Mutation(
        "limit before the kind",
        limit_comes_before_the_kind,
        frozenset({"interference"}),
        (generate.flood, generate.talk_on_one_response),
    ),
    Mutation("no limits", no_limits, STOPS | {"bounded"}, (generate.flood,)),
    Mutation("anyone retracts", anyone_retracts, frozenset({"interference"}), (generate.retract,)),
    Mutation(
        "second response wins",
        second_response_wins,
        frozenset({"interference"}),
        (generate.record_responses,),
    ),
    Mutation("borrowed traceparent", borrowed_traceparent, frozenset({"trace"})),
    Mutation("unbounded traceparent", unbounded_traceparent, frozenset({"header", "dead letter"}), FEEDBACK),
    Mutation(
        "one example stops the cut",
        one_example_stops_the_cut,
        STOPS,
        (generate.poison_the_state, generate.send_feedback, generate.record_responses),
    ),
    Mutation(
        "damage is not healed",
        damage_is_not_healed,
        STOPS,
        (generate.poison_the_state, generate.send_feedback, generate.record_responses),
    ),
    Mutation(
        "retractions order rereads", retractions_order_rereads, frozenset({"reread"}), (generate.retract,)
    ),
    Mutation("unclamped times", unclamped_times, STOPS | {"interference", "outcomes"}, FEEDBACK),
)
"""All mutations. Add one for every class of mistake that is fixed."""
