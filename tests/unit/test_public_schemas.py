"""The published schemas are current and complete. `tests/integration/test_asyncapi.py` validates them."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from shared.events import FEEDBACK, ChatResponse, Feedback, FeedbackBase
from shared.limits import MAX_EVENT_BYTES, MAX_RESPONSE_BYTES
from shared.schemas import FOLDER, asyncapi, documents
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS, TOPICS

KINDS: tuple[type[FeedbackBase], ...] = get_args(get_args(Feedback)[0])


def references(value: Any) -> list[str]:
    """Return all `$ref` of a document."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for part in value.values() for ref in references(part)]
    return [ref for part in value for ref in references(part)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", documents())
def test_published_schema_is_current(name: str) -> None:
    assert (FOLDER / name).read_text() == documents()[name], "run `python -m shared.schemas`"


def test_every_published_file_is_generated() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} == set(documents())


def test_document_covers_the_topics_that_apps_may_write() -> None:
    document = asyncapi()
    addresses = {channel["address"].removeprefix("{namespace}") for channel in document["channels"].values()}
    assert addresses == {name for name, topic in TOPICS.items() if "sdk" in topic.writers}
    assert {channel["x-partitioner"] for channel in document["channels"].values()} == {"murmur2_random"}


def test_every_kind_of_feedback_is_a_message_with_its_type() -> None:
    messages = asyncapi()["components"]["messages"]
    assert {message["name"] for message in messages.values()} == {
        record.event_type for record in (ChatResponse, *KINDS)
    }
    for message in messages.values():
        assert message["headers"]["properties"]["ce_type"]["const"] == message["name"]
    assert len(FEEDBACK.json_schema()["oneOf"]) == len(KINDS)


def test_every_reference_resolves() -> None:
    document = asyncapi()
    for reference in references(document):
        part: Any = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
        assert part


def test_sizes_of_records_are_stated() -> None:
    texts = documents()
    assert (
        f"{MAX_RESPONSE_BYTES} bytes" in json.loads(texts[f"{CHAT_RESPONSES.name}.schema.json"])["$comment"]
    )
    assert f"{MAX_EVENT_BYTES} bytes" in json.loads(texts[f"{FEEDBACK_EVENTS.name}.schema.json"])["$comment"]
