"""The AsyncAPI document against the official schema, and records against the published JSON Schemas.

`tests/data/asyncapi/3.0.0.json` is `schemas/3.0.0-without-$id.json` of github.com/asyncapi/spec-json-schemas, commit
7dd3990d, with its licence.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from jsonschema import Draft7Validator, Draft202012Validator, FormatChecker
from jsonschema.protocols import Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

import loopwright.records as sdk
from loopwright.errors import InvalidRecord
from shared.errors import Rejected
from shared.events import FEEDBACK, ChatResponse, parse_union
from shared.schemas import FOLDER
from tests.unit.test_api_bounds import FEEDBACK_FIELDS, RESPONSE_FIELDS

DATA = Path(__file__).resolve().parents[1] / "data"
OFFICIAL = Draft7Validator(json.loads((DATA / "asyncapi" / "3.0.0.json").read_text()))
DOCUMENT = json.loads((FOLDER / "asyncapi.json").read_text())
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
KINDS = ("Thumbs", "Rating", "Correction", "Comment", "Preference", "Retract")
THUMBS = json.loads((DATA / "records" / "Thumbs.json").read_text())
RESPONSE = json.loads((DATA / "records" / "ChatResponse.json").read_text())


FORMATS = FormatChecker()


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(value: Any) -> bool:
    """Return whether a text is a time with a zone. jsonschema needs another package to know this format."""
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


def of_topic(topic: str) -> Validator:
    """Return a validator of the topic's published schema."""
    schema = json.loads((FOLDER / f"{topic}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=FORMATS)


def of_message(name: str) -> Validator:
    """Return a validator of a message's payload in the AsyncAPI document."""
    registry: Registry[Any] = Registry().with_resource(
        "urn:asyncapi", Resource.from_contents(DOCUMENT, default_specification=DRAFT202012)
    )
    reference = DOCUMENT["components"]["messages"][name]["payload"]["$ref"]
    return Draft202012Validator({"$ref": f"urn:asyncapi{reference}"}, registry=registry)


RESPONSES, EVENTS = of_topic("chat.responses"), of_topic("feedback.events")


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        del document[path[-1]]

    return change


def with_value(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        document[path[-1]] = value

    return change


def test_document_is_valid_asyncapi_3() -> None:
    assert [error.message for error in OFFICIAL.iter_errors(DOCUMENT)] == []


@pytest.mark.parametrize(
    "change",
    [
        without("info", "title"),
        without("asyncapi"),
        with_value("listen", "operations", "receiveFeedback", "action"),
        with_value(7, "channels", "feedbackEvents", "address"),
        with_value("kafka", "components", "securitySchemes", "plain", "type"),
        with_value([], "components", "messages", "Thumbs", "headers"),
        with_value(1, "servers", "kafka", "host"),
    ],
)
def test_official_schema_finds_faults(change: Callable[[dict[str, Any]], None]) -> None:
    broken = copy.deepcopy(DOCUMENT)
    change(broken)
    assert list(OFFICIAL.iter_errors(broken))


def test_golden_records_fit_the_schemas() -> None:
    RESPONSES.validate(RESPONSE)
    of_message("ChatResponse").validate(RESPONSE)
    for kind in KINDS:
        record = json.loads((DATA / "records" / f"{kind}.json").read_text())
        EVENTS.validate(record)
        of_message(kind).validate(record)


@pytest.mark.parametrize(
    "change",
    [
        {"value": "sideways"},
        {"kind": "shout"},
        {"response_id": "a b"},
        {"event_id": "x" * 129},
        {"user_id": ""},
        {"line": "UPPER"},
        {"tags": ["t"] * 17},
        {"choice": 8},
        {"received_at": "yesterday"},
    ],
    ids=str,
)
def test_schema_refuses_what_the_processor_refuses(change: dict[str, Any]) -> None:
    record = THUMBS | change
    assert not EVENTS.is_valid(record)
    with pytest.raises(Rejected):
        parse_union(FEEDBACK, json.dumps(record).encode())


@pytest.mark.parametrize(
    "field", ["line", "response_id", "event_id", "user_id", "kind", "value", "received_at"]
)
def test_schema_requires_the_fields_that_the_processor_requires(field: str) -> None:
    record = {name: value for name, value in THUMBS.items() if name != field}
    assert not EVENTS.is_valid(record)
    with pytest.raises(Rejected):
        parse_union(FEEDBACK, json.dumps(record).encode())


FACTORY = sdk.RecordFactory(
    line="assistant", source="app", pseudonymiser=sdk.Pseudonymiser("a key that is long enough")
)


@settings(max_examples=200)
@given(FEEDBACK_FIELDS)
def test_every_event_of_the_sdk_fits_its_schema(fields: dict[str, Any]) -> None:
    known = {"response_id": "r1", "user_id": "ann", "kind": "thumbs", "value": "up", "event_id": "e1"}
    fields.pop("occurred_at", None)
    try:
        record = FACTORY.feedback(**(known | fields), now=NOW)
    except InvalidRecord:
        return
    content = json.loads(record.value)
    EVENTS.validate(content)
    of_message(content["kind"].capitalize()).validate(content)


@settings(max_examples=200)
@given(RESPONSE_FIELDS)
def test_every_response_of_the_sdk_fits_its_schema(fields: dict[str, Any]) -> None:
    known: dict[str, Any] = {
        "response_id": "r1",
        "version": "own-1",
        "messages": [{"role": "user", "content": "hi"}],
        "choices": [{"index": 0, "text": "hello"}],
    }
    known |= {name: value for name, value in fields.items() if name not in {"created_at", "first_token_ms"}}
    try:
        record = FACTORY.response(**known, created_at=NOW - timedelta(hours=1), now=NOW)
    except InvalidRecord:
        return
    content = json.loads(record.value)
    RESPONSES.validate(content)
    assert ChatResponse.from_json(record.value)
