"""JSON Schemas and an AsyncAPI 3.0 document of the topics that apps may write, generated from `shared/events.py`.

`python -m shared.schemas` writes them to `docs/schemas/`; a test fails if they are not current.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from shared.events import (
    FEEDBACK,
    ChatResponse,
    Comment,
    Correction,
    Id,
    LogRecord,
    Preference,
    Rating,
    Retract,
    Thumbs,
)
from shared.limits import MAX_EVENT_BYTES, MAX_RESPONSE_BYTES
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS, Topic

FOLDER: Final = Path(__file__).resolve().parent.parent / "docs" / "schemas"
Json = dict[str, Any]
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_FEEDBACK: Final = (Thumbs, Rating, Correction, Comment, Preference, Retract)
_SASL: Final = {
    "tls": {"type": "X509", "description": "TLS with a client certificate."},
    "plain": {"type": "plain", "description": "SASL/PLAIN over TLS."},
    "scram_sha256": {"type": "scramSha256", "description": "SASL/SCRAM-SHA-256 over TLS."},
    "scram_sha512": {"type": "scramSha512", "description": "SASL/SCRAM-SHA-512 over TLS."},
    "oauth": {
        "type": "oauth2",
        "description": "SASL/OAUTHBEARER over TLS; the token endpoint is the cluster's.",
        "flows": {
            "clientCredentials": {"tokenUrl": "https://idp.example.org/oauth2/token", "availableScopes": {}}
        },
    },
}
_INFO: Final = """\
Topics that an app may write to directly, in any language. `docs/producers.md` explains keys, times and failures.

- The key of a record is its `response_id` in UTF-8. Producers must partition by murmur2 of the key, as Java clients do
  (librdkafka: `partitioner=murmur2_random`).
- Produce with `acks=all` and idempotence. A record that is sent twice counts once.
- `user_id` is a pseudonym: `u_` and the first 32 hex digits of HMAC-SHA256(key, user id in NFC and UTF-8), with the
  deployment's `LOOPWRIGHT_PSEUDONYM_KEY`. Never write the user id itself: it could not be erased.
- Records that do not fit become dead letters; they disturb no other record."""


def json_schemas() -> dict[str, Json]:
    """Return the JSON Schemas by file name."""
    return {
        f"{CHAT_RESPONSES.name}.schema.json": _standalone(
            CHAT_RESPONSES, TypeAdapter(ChatResponse), MAX_RESPONSE_BYTES
        ),
        f"{FEEDBACK_EVENTS.name}.schema.json": _standalone(FEEDBACK_EVENTS, FEEDBACK, MAX_EVENT_BYTES),
    }


def asyncapi() -> Json:
    """Return the AsyncAPI document. Loopwright receives what apps send, so its operations are `receive`."""
    records: tuple[type[LogRecord], ...] = (ChatResponse, *_FEEDBACK)
    _, definitions = models_json_schema(
        [(record, "validation") for record in records], ref_template="#/components/schemas/{model}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Loopwright: topics for producers",
            "version": "1.0.0",
            "description": _INFO,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka-secure",
                "description": "The Kafka cluster of the deployment. The local stack uses no TLS and no SASL.",
                "variables": {"bootstrap": {"default": "kafka:9092", "description": "host:port of a broker"}},
                "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in _SASL],
            }
        },
        "channels": {
            "chatResponses": _channel(
                CHAT_RESPONSES,
                "Responses of an app's own model server. Inference writes its responses itself.",
                (ChatResponse,),
            ),
            "feedbackEvents": _channel(FEEDBACK_EVENTS, "What users said about responses.", _FEEDBACK),
        },
        "operations": {
            "receiveResponses": _operation("chatResponses", (ChatResponse,)),
            "receiveFeedback": _operation("feedbackEvents", _FEEDBACK),
        },
        "components": {
            "messages": {record.__name__: _message(record) for record in records},
            "schemas": definitions["$defs"],
            "securitySchemes": _SASL,
        },
    }


def documents() -> dict[str, str]:
    """Return the text of every generated file by its name."""
    files = {**json_schemas(), "asyncapi.json": asyncapi()}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text)


def _standalone(topic: Topic, adapter: TypeAdapter[Any], max_bytes: int) -> Json:
    schema = adapter.json_schema()
    return {
        "$schema": _DIALECT,
        "$id": f"urn:loopwright:schema:{topic.name}:1",
        "title": topic.name,
        "$comment": f"Generated by shared/schemas.py. Maximum size of a record as JSON: {max_bytes} bytes.",
        **{name: value for name, value in schema.items() if name != "title"},
    }


def _channel(topic: Topic, description: str, records: tuple[type[LogRecord], ...]) -> Json:
    return {
        "address": "{namespace}" + topic.name,
        "description": description,
        "parameters": {
            "namespace": {
                "description": "`LOOPWRIGHT_NAMESPACE` of the deployment and a dot, or nothing.",
                "default": "",
                "examples": ["", "staging."],
            }
        },
        "messages": {record.__name__: {"$ref": _message_path(record)} for record in records},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "topicConfiguration": {
                    "cleanup.policy": ["delete"],
                    "retention.ms": int(topic.broker_config()["retention.ms"]),
                    "max.message.bytes": int(topic.broker_config()["max.message.bytes"]),
                },
                "bindingVersion": "0.5.0",
            }
        },
        "x-partitioner": "murmur2_random",
        "x-message-timestamp-type": "LogAppendTime",
    }


def _operation(channel: str, records: tuple[type[LogRecord], ...]) -> Json:
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{record.__name__}"} for record in records],
    }


def _message(record: type[LogRecord]) -> Json:
    is_response = record is ChatResponse
    return {
        "name": record.event_type,
        "title": record.__name__,
        "summary": (record.__doc__ or "").splitlines()[0],
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "description": "CloudEvents 1.0 in binary mode. Values are UTF-8. The processor reads only `traceparent`.",
            "properties": {
                "ce_specversion": {"const": "1.0"},
                "ce_id": {
                    "type": "string",
                    "description": "`<response_id>`"
                    if is_response
                    else "`<response_id>/<event_id>`; `%` and `/` within an id as `%25` and `%2F`",
                },
                "ce_source": {"type": "string", "format": "uri-reference"},
                "ce_type": {"const": record.event_type},
                "ce_time": {"type": "string", "format": "date-time"},
                "content-type": {"const": "application/json"},
                "traceparent": {"type": "string", "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"},
            },
            "required": ["ce_specversion", "ce_id", "ce_source", "ce_type"],
        },
        "payload": {"$ref": f"#/components/schemas/{record.__name__}"},
        "bindings": {
            "kafka": {
                "key": TypeAdapter(Id).json_schema() | {"description": "The response_id."},
                "bindingVersion": "0.5.0",
            }
        },
        "x-max-bytes": MAX_RESPONSE_BYTES if is_response else MAX_EVENT_BYTES,
    }


def _message_path(record: type[LogRecord]) -> str:
    return f"#/components/messages/{record.__name__}"


if __name__ == "__main__":
    main()
