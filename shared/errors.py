"""One error tree. Each class says whether trying again helps; each message says what happened, to what, and what to do.

- `Retryable`: the same call may succeed later (a broker is away, a lock is held).
- `Rejected`:  the input is at fault; trying the same input again cannot help.
- `Fatal`:     this process cannot go on; a person or a restart with other settings must act.
"""

from __future__ import annotations

from typing import ClassVar


class LoopwrightError(Exception):
    """Root of all errors raised on purpose. `code` is stable and machine-readable; the message is for people."""

    code: ClassVar[str] = "error"


class Retryable(LoopwrightError):
    """Trying again may help."""

    code = "retryable"


class BrokerUnavailable(Retryable):
    """Kafka did not answer or did not acknowledge in time."""

    code = "broker_unavailable"


class NotYet(Retryable):
    """What was asked for does not exist yet, but may come."""

    code = "not_yet"


class StoreAway(Retryable):
    """The artifact store did not answer in time, or refused its credentials."""

    code = "store_away"


class Overloaded(Retryable):
    """A stated bound (queue, rate, spool) is reached."""

    code = "overloaded"


class Rejected(LoopwrightError):
    """The input is at fault: trying the same again cannot help."""

    code = "rejected"


class Malformed(Rejected):
    """Bytes that are not the record they should be."""

    code = "malformed"


class Oversized(Rejected):
    """Larger than the stated bound."""

    code = "oversized"


class Conflict(Rejected):
    """The same identity with other content. The first stands."""

    code = "conflict"


class UnknownVersion(Rejected):
    """No such version in this line."""

    code = "unknown_version"


class BadArtifact(Rejected):
    """An artifact that is incomplete, altered, or of a kind that is refused (for instance not safetensors)."""

    code = "bad_artifact"


class Fatal(LoopwrightError):
    """This process cannot go on."""

    code = "fatal"


class Fenced(Fatal):
    """Another process took over this one's identity (`transactional.id`). Run one process per instance name."""

    code = "fenced"


class Misconfigured(Fatal):
    """Settings or topics do not fit what this deployment was made with."""

    code = "misconfigured"


class DeadLetterFlood(Fatal):
    """More dead letters than the stated limit: halting beats emptying a topic into them."""

    code = "dead_letter_flood"
