"""The plain handlers that the feedback API is compared with: `uvicorn benchmarks.feedback.handlers:empty` or `:plain`.

`empty` parses nothing and writes nothing. `plain` is what a developer writes in an hour: a FastAPI route with a
pydantic body, and aiokafka. It has no keys, no limits, no duplicate check, no pseudonyms and no trace context.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer
from fastapi import FastAPI, Request
from pydantic import BaseModel

TOPIC = "bench.plain"


class Event(BaseModel):
    """Body of a feedback event."""

    event_id: str
    response_id: str
    user_id: str
    kind: str
    value: str


producers: list[AIOKafkaProducer] = []


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Connect the producer."""
    producer = AIOKafkaProducer(
        bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"], acks="all", enable_idempotence=True
    )
    await producer.start()
    producers.append(producer)
    yield
    await producer.stop()


plain = FastAPI(lifespan=lifespan)
empty = FastAPI()


@plain.post("/v1/feedback", status_code=202)
async def post_feedback(event: Event) -> dict[str, str]:
    """Write the event and answer after the acknowledgement."""
    await producers[0].send_and_wait(TOPIC, event.model_dump_json().encode(), key=event.response_id.encode())
    return {"event_id": event.event_id, "status": "accepted"}


@empty.post("/v1/feedback", status_code=202)
async def do_nothing(request: Request) -> dict[str, str]:
    """Read the body and answer."""
    await request.body()
    return {"status": "accepted"}


@plain.get("/readyz")
@empty.get("/readyz")
async def readyz() -> dict[str, bool]:
    """Answer once the server runs."""
    return {"ready": True}
