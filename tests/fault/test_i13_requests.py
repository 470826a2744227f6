"""The generator's shortcut to the feedback API accepts the same bodies and writes the same records as the real one."""

from __future__ import annotations

import json
import random
from typing import Any

from pydantic import SecretStr

from services.feedback.handlers import FeedbackHandlers
from services.feedback.settings import FeedbackSettings
from services.feedback.views import ErasureStatusView, VersionsView
from shared.adapters.async_publisher import AsyncPublisher
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryAsyncCache, InMemoryCache, InMemoryLog, InMemoryPublisher
from shared.errors import LoopwrightError
from shared.records import Output, Record
from tests.fault.i13 import requests, values
from tests.fault.i13.history import T0
from tests.feedback_factories import receipt_lookup

BODIES = 150


def handlers(log: InMemoryLog, clock: ManualClock) -> FeedbackHandlers:
    cache = InMemoryCache(clock)
    return FeedbackHandlers(
        settings=FeedbackSettings(user_per_minute=10_000, pseudonym_key=SecretStr("k" * 32)),
        publisher=AsyncPublisher(InMemoryPublisher(log, "feedback")),
        cache=InMemoryAsyncCache(cache),
        clock=clock,
        pseudonymiser=requests.PSEUDONYMS,
        lines=requests.LINES,
        versions=VersionsView(),
        erasures=ErasureStatusView(),
        receipts=receipt_lookup(log, 1),
    )


async def test_shortcut_writes_the_same_records_as_the_feedback_api() -> None:
    rng, clock, log = random.Random(1), ManualClock(T0), InMemoryLog(1)
    api = handlers(log, clock)
    accepted = 0
    for number in range(BODIES):
        response_id, user = f"r{number}", rng.choice(("ann", "bob", "zoë", "", "\x00"))
        if number % 2:
            body = requests.a_feedback_body(rng, T0, response_id=response_id, user=user, event_ids=[])
            expected, post = requests.feedback(body, T0), api.post_feedback
        else:
            body = requests.a_response_body(rng, T0, response_id=response_id, user=user or None)
            expected, post = requests.response(body, T0), post_response(api)
        trace = dict(expected.headers)["traceparent"].decode() if expected else None
        status = await status_of(post, body, trace)
        assert (status == 202) == (expected is not None), body
        if expected is not None:
            accepted += 1
            written = log.records(expected.topic)[-1]
            assert comparable(written) == comparable(expected)
    assert BODIES * 0.2 < accepted < BODIES * 0.9, "the bodies should be of both kinds"


def post_response(api: FeedbackHandlers) -> Any:
    async def post(raw: bytes, _idempotency_key: str | None, traceparent: str | None) -> Any:
        return await api.post_response(raw, traceparent)

    return post


async def status_of(post: Any, body: dict[str, Any], trace: str | None) -> int:
    try:
        raw = json.dumps(body, ensure_ascii=False).encode()
        return int((await post(raw, None, trace)).status_code)
    except (LoopwrightError, UnicodeEncodeError):
        return 422


def comparable(record: Output | Record) -> tuple[Any, ...]:
    return record.topic, record.key, json.loads(record.value or b""), dict(record.headers)


def test_ids_of_the_generator_are_valid_and_of_every_length() -> None:
    rng = random.Random(1)
    lengths = {len(values.an_id(rng)) for _ in range(2_000)}
    assert {1, 64, 119, 120, 127, 128} <= lengths
