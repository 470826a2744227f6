"""Errors that the clients raise.

LoopwrightError
├── Unreachable     no response from the service
├── StillRunning    waited too long for a result
├── KeyFileError    the file of API keys cannot be used (in `api_keys`)
├── InvalidRecord   a record for Kafka is not valid
├── NotDelivered    Kafka did not acknowledge a record
├── QueueFull       too many records wait for Kafka
├── OutboxFull      no space for what waits to be sent (in `outbox`)
└── Problem         the service answered with an error
    ├── Invalid         the request is wrong (other 4xx)
    ├── Denied          401, 403
    ├── NotFound        404
    ├── Conflict        409
    ├── Overloaded      429, after all retries
    └── Unavailable     5xx, after all retries; or not a Loopwright service
"""

from __future__ import annotations

from typing import Any, Literal

import httpx


class LoopwrightError(Exception):
    """Base class of the errors. The message is for people and says what to do; programs use the class or `code`."""

    code = "error"
    """Stable identifier of the error, in snake case."""
    command_id: str | None = None
    """Set if a command was sent: send it again with this id, and it is executed once."""


class Unreachable(LoopwrightError):
    """The service sent no response: nothing listens at the address, or the connection broke. Retries did not help."""

    code = "unreachable"

    def __init__(self, url: str, variable: str, reason: str) -> None:
        self.url = url
        super().__init__(
            f"{url} is not reachable ({reason or 'no response'}). Check that the service is running, or set {variable} "
            "to its address."
        )


class StillRunning(LoopwrightError):
    """The command or erasure was accepted but did not finish within the timeout. It may still finish."""

    code = "still_running"

    def __init__(
        self, command_id: str, timeout: float, kind: Literal["command", "erasure"] = "command"
    ) -> None:
        self.command_id: str = command_id
        """Id of the command, or request id of the erasure."""
        super().__init__(
            f"{kind} {command_id} has not finished after {timeout:g} s. It was accepted and may still finish; check "
            "its result later."
        )


class InvalidRecord(LoopwrightError):
    """The processor could not use this record, so it was not sent. The message names the field and the limit."""

    code = "invalid_record"


class NotDelivered(LoopwrightError):
    """Kafka did not acknowledge a record in time, or refused it. It may still arrive: send it again under its id."""

    code = "not_delivered"


class QueueFull(LoopwrightError):
    """Too many records wait for Kafka's acknowledgement. Nothing was sent; wait with `flush`, then send it again."""

    code = "queue_full"


class OutboxFull(LoopwrightError):
    """There is no space for another row in an outbox, or its file cannot be written."""

    code = "outbox_full"


class Problem(LoopwrightError):
    """The service answered with an error: a problem document (RFC 9457), or any other response of status 400 or above.

    Attributes:
        status: HTTP status.
        code: Stable identifier of the problem, as the service sent it.
        title: Short summary.
        detail: What went wrong and what to do.

    """

    def __init__(self, status: int, code: str, title: str, detail: str) -> None:
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        super().__init__(f"{title}: {detail}" if detail and detail != title else title or f"HTTP {status}")


class Invalid(Problem):
    """The request is invalid. Sending it again does not help."""


class Denied(Problem):
    """The caller is not authenticated, or not allowed to do this."""


class NotFound(Problem):
    """No object has this id, or it does not exist yet."""


class Conflict(Problem):
    """The id was already used for different content, which stays in force. Send the new content under a new id."""


class Overloaded(Problem):
    """Too many requests, even after waiting as long as the service asked. Nothing was stored."""


class Unavailable(Problem):
    """The service cannot do its work now, for example because Kafka is down. Retries did not help."""


_BY_STATUS: dict[int, type[Problem]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Conflict,
    429: Overloaded,
}


def problem_from(response: httpx.Response) -> Problem:
    """Return the error for a response of status 400 or above, whether or not it is a problem document."""
    status = response.status_code
    document = _document(response)
    kind = _BY_STATUS.get(status, Invalid if status < 500 else Unavailable)
    title = str(document.get("title") or response.reason_phrase or f"HTTP {status}")
    detail = str(document.get("detail") or _advice(kind, response))
    return kind(status, str(document.get("code") or kind.__name__.lower()), title, detail)


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _advice(kind: type[Problem], response: httpx.Response) -> str:
    request = f"{response.request.method} {response.request.url}"
    if kind is Unavailable:
        return f"{request} failed with status {response.status_code}. Try again later, or check the service's log."
    if kind is NotFound:
        return f"{request} does not exist. Check the id, and that the address is that of the right service."
    return f"{request} was rejected with status {response.status_code}."
