"""Ids of any allowed length and characters: composed ids stay distinct, and fit where an id must fit."""

from __future__ import annotations

import string

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from services.processor.core.join import EventOutcome
from services.processor.core.outbox import Outbox
from services.processor.core.state import JoinedResponse
from services.trainer.dataset.filters import Row
from shared.adapters import redis_keys
from shared.composed_ids import digest_id, join_ids, shortened_id
from shared.events import Id, OutcomeKind
from shared.records import Record
from shared.topics import FEEDBACK_EVENTS
from shared.versions import batch_name

ID: TypeAdapter[str] = TypeAdapter(Id)
PRINTABLE = "".join(chr(code) for code in range(ord("!"), ord("~") + 1))
ids = st.one_of(
    st.text("ab/:|%-", min_size=1, max_size=6),
    st.text(PRINTABLE, min_size=1, max_size=128),
    st.text(PRINTABLE, min_size=128, max_size=128),
)
pairs = st.tuples(ids, ids)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[tuple[str, str], tuple[str, str]]:
    """Draw two pairs of ids that become the same text if a separator joins them."""
    parts = st.text("ab%", min_size=1, max_size=3)
    separator = draw(st.sampled_from(["/", ":", "|", "%2F", "%", "-"]))
    first, second, third = draw(parts), draw(parts), draw(parts)
    return (first + separator + second, third), (first, second + separator + third)


def ce_id(response_id: str, event_id: str) -> bytes:
    """Return the CloudEvents id of an outcome."""
    key = response_id.encode()
    outbox = Outbox(Record(FEEDBACK_EVENTS.name, 0, 0, 0, key, b""))
    outbox.outcomes(
        key, JoinedResponse(line="assistant", since_ms=0), [EventOutcome(event_id, OutcomeKind.LATE)]
    )
    (output,) = outbox.outputs
    return dict(output.headers)["ce_id"]  # type: ignore[union-attr]


def row_identity(response_id: str, event_id: str) -> str:
    """Return the identity of a training row."""
    return Row(response_id, 1, event_id, "u", (("user", "?"),), "", "", 0).identity


COMPOSED = {
    "join_ids": join_ids,
    "digest_id": lambda a, b: digest_id("retract:", a, b),
    "identity key": lambda a, b: redis_keys.identity(a, b, 0),
    "outcome ce_id": ce_id,
    "training row": row_identity,
}


@settings(max_examples=300)
@given(st.one_of(neighbours(), st.tuples(pairs, pairs)))
def test_two_pairs_of_ids_never_share_a_composed_id(two: tuple[tuple[str, str], tuple[str, str]]) -> None:
    first, second = two
    for name, compose in COMPOSED.items():
        assert (compose(*first) == compose(*second)) == (first == second), (name, first, second)


@given(ids, ids, st.integers(0, 2**40), st.integers(0, 2**40))
def test_callers_never_share_a_rate_limit(one: str, other: str, now: int, then: int) -> None:
    same = redis_keys.rate_limit("feedback", one, now) == redis_keys.rate_limit("feedback", other, then)
    assert same == ((one, now) == (other, then))


@given(ids, ids)
def test_redis_keys_of_different_things_differ(response_id: str, event_id: str) -> None:
    keys = [
        redis_keys.identity(response_id, event_id, 0),
        redis_keys.identity(response_id, event_id, 1),
        redis_keys.rate_limit("feedback", event_id, 1),
    ]
    assert len(set(keys)) == len(keys)


@given(ids, ids)
def test_digest_and_shortened_ids_are_ids(first: str, second: str) -> None:
    assert ID.validate_python(digest_id("retract:", first, second))
    assert ID.validate_python(shortened_id(f"retract:{first}/{second}"))
    assert shortened_id(first) == first


@given(
    st.text(string.ascii_lowercase, min_size=63, max_size=63), st.integers(0, 9_999), st.integers(1, 2**63)
)
def test_batch_name_of_the_longest_line_is_an_id(line: str, partition: int, number: int) -> None:
    assert ID.validate_python(batch_name(line, partition, number))
