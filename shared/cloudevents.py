"""Wrap records as CloudEvents 1.0 in binary mode, with a W3C `traceparent`.

Sources: CloudEvents Kafka protocol binding 1.0.2, section 3.2; W3C Trace Context, section 3.2.
"""

from __future__ import annotations

import re
import secrets
from datetime import datetime

from shared.events import LogRecord, rfc3339
from shared.records import Headers, Output
from shared.topics import Topic

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACEPARENT_BYTES = 55
_JSON = ("content-type", b"application/json")


def traceparent_of(headers: Headers) -> str | None:
    """Return the last `traceparent` header, or None if there is none or if it is malformed."""
    for name, value in reversed(headers):
        if name == "traceparent":
            text = value.decode("ascii", "replace") if value and len(value) <= _TRACEPARENT_BYTES else ""
            return text if _TRACEPARENT.fullmatch(text) else None
    return None


def new_traceparent() -> str:
    """Return a new, sampled trace context."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def valid_traceparent(traceparent: str | None) -> str:
    """Return the caller's trace context, or a new one if it is missing or malformed."""
    if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
        return traceparent
    return new_traceparent()


class CloudEventFactory:
    """Like `cloudevent`, for many records of one type: constant headers are built once.

    The caller passes the encoded value, which must equal what `kind` would encode.
    """

    __slots__ = ("_before", "_between", "_topic")

    def __init__(self, topic: Topic, kind: type[LogRecord], source: str) -> None:
        self._topic = topic.name
        self._before = ("ce_specversion", b"1.0")
        self._between = (
            ("ce_source", f"/loopwright/{source}".encode()),
            ("ce_type", kind.event_type.encode()),
        )

    def __call__(
        self,
        key: bytes,
        value: bytes | None,
        ce_id: str,
        ce_time: str,
        partition: int | None,
        traceparent: str | None,
    ) -> Output:
        """Return the output for one record.

        `ce_id` identifies the event within its source: use the same one when the record is sent again. `ce_time` is
        RFC 3339 in UTC (`rfc3339`).
        """
        headers: Headers = (
            self._before,
            ("ce_id", ce_id.encode()),
            *self._between,
            ("ce_time", ce_time.encode()),
            _JSON,
        )
        if traceparent:
            headers = (*headers, ("traceparent", traceparent.encode()))
        return Output(self._topic, key, value, headers, partition)


def cloudevent(
    topic: Topic,
    key: str,
    record: LogRecord,
    *,
    source: str,
    ce_id: str,
    at: datetime,
    traceparent: str | None = None,
    partition: int | None = None,
) -> Output:
    """Return the output that carries `record` to `topic`. Pure: the caller provides identity and time.

    `source` is the name of the writing service. Use the same `ce_id` when the same record is sent again.
    """
    factory = CloudEventFactory(topic, type(record), source)
    return factory(key.encode(), record.to_json(), ce_id, rfc3339(at), partition, traceparent)
