"""How a record travels: JSON value, CloudEvents 1.0 binary-mode headers, W3C `traceparent`.

Sources: CloudEvents Kafka protocol binding 1.0.2, section 3.2; W3C Trace Context, section 3.2.
"""

from __future__ import annotations

import secrets
from datetime import datetime

from shared.events import LogRecord, rfc3339
from shared.records import Output
from shared.topics import Topic

Headers = tuple[tuple[str, bytes], ...]
_JSON = ("content-type", b"application/json")


def traceparent_of(headers: Headers) -> str | None:
    for name, value in reversed(headers):
        if name == "traceparent":
            return value.decode("ascii", "replace") or None
    return None


def new_traceparent() -> str:
    """A fresh, sampled trace context."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


class Seal:
    """As `sealed`, for who writes many records of one kind: what is the same for all is made once.

    The bytes are the caller's, and must be what `kind` would write.
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
        """`ce_id` with the source names one sending. `ce_time`: RFC 3339, in UTC (`rfc3339`)."""
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


def sealed(
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
    """`record` as it goes to `topic`. Pure: identity and time are the caller's.

    `source` is the writing service's name, `ce_id` must be the same when the same record is sent again.
    """
    seal = Seal(topic, type(record), source)
    return seal(key.encode(), record.to_json(), ce_id, rfc3339(at), partition, traceparent)
