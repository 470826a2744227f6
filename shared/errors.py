"""The error tree. The class says whether a retry helps; the message says what happened, to what, and what to do.

LoopwrightError
├── Retryable            the same call may succeed later
│   ├── BrokerUnavailable
│   │   ├── NotPermitted
│   │   └── TopicUnavailable
│   ├── NotYet
│   ├── StoreUnavailable
│   └── Overloaded
├── Rejected             the input is at fault; a retry cannot help
│   ├── Malformed
│   ├── Oversized
│   ├── RefusedByBroker
│   ├── Conflict
│   ├── UnknownVersion
│   ├── UnknownLine
│   └── BadArtifact
└── Fatal                this process cannot continue; a person must act
├── Fenced
├── Misconfigured
└── DeadLetterFlood
"""

from __future__ import annotations

from typing import ClassVar


class LoopwrightError(Exception):
    """Base of all errors that Loopwright raises on purpose. `code` is stable; the message is for people."""

    code: ClassVar[str] = "error"


class Retryable(LoopwrightError):
    """A retry may succeed."""

    code = "retryable"


class BrokerUnavailable(Retryable):
    """Kafka did not answer or did not acknowledge in time."""

    code = "broker_unavailable"


class TopicUnavailable(BrokerUnavailable):
    """A topic does not exist, or no longer exists. The topics job creates it."""

    code = "topic_unavailable"


class NotPermitted(BrokerUnavailable):
    """Kafka refuses the principal or its credentials. A retry succeeds once a person has granted the permission."""

    code = "not_permitted"


class NotYet(Retryable):
    """The requested object does not exist yet, but may be created."""

    code = "not_yet"


class StoreUnavailable(Retryable):
    """The artifact store did not answer in time, or refused its credentials."""

    code = "store_unavailable"


class Overloaded(Retryable):
    """A documented limit (queue, rate, spool) is reached."""

    code = "overloaded"


class Rejected(LoopwrightError):
    """The input is at fault; a retry cannot help."""

    code = "rejected"


class Malformed(Rejected):
    """The bytes are not a valid record of the expected type."""

    code = "malformed"


class Oversized(Rejected):
    """The input is larger than a documented limit."""

    code = "oversized"


class RefusedByBroker(Rejected):
    """Kafka refuses the record for its contents, for instance because it has no key on a compacted topic."""

    code = "refused_by_broker"


class Conflict(Rejected):
    """The same identity was used before with other content. The first one counts."""

    code = "conflict"


class UnknownVersion(Rejected):
    """The line has no version of this name."""

    code = "unknown_version"


class UnknownLine(Rejected):
    """The deployment has no line of this name."""

    code = "unknown_line"


class BadArtifact(Rejected):
    """An artifact is incomplete, was altered, or contains a refused file type (weights must be safetensors)."""

    code = "bad_artifact"


class Fatal(LoopwrightError):
    """This process cannot continue."""

    code = "fatal"


class Fenced(Fatal):
    """Another process took this one's identity (`transactional.id`). Run one process per instance name."""

    code = "fenced"


class Misconfigured(Fatal):
    """Settings or topics do not match the deployment."""

    code = "misconfigured"


class DeadLetterFlood(Fatal):
    """More records of Loopwright's own topics cannot be read than the limit allows: versions do not match."""

    code = "dead_letter_flood"
