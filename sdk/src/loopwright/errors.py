"""What can go wrong, one class per thing that a caller does differently. Every message says what to do."""

from __future__ import annotations

from typing import Any

import httpx


class LoopwrightError(Exception):
    """Root of all errors that this package raises on purpose. `code` is for programs, the message for people."""

    code = "error"


class Unreachable(LoopwrightError):
    """No answer came: nothing listens there, or the connection broke, also after trying again."""

    code = "unreachable"

    def __init__(self, url: str, setting: str, reason: str) -> None:
        self.url = url
        what = reason or "no answer"
        super().__init__(
            f"{url} is not reachable ({what}). Is the stack up? Another address is set by {setting}."
        )


class StillRunning(LoopwrightError):
    """The command or erasure was accepted, but did not come to its end within the time that was given."""

    code = "still_running"

    def __init__(self, command_id: str, seconds: float, what: str = "command") -> None:
        self.command_id = command_id
        super().__init__(
            f"No result of {what} {command_id} after {seconds:g} s. It was accepted and may still be carried out: "
            f"ask for its result again later."
        )


class Problem(LoopwrightError):
    """The service answered with a problem document (RFC 9457).

    `status` is the HTTP status, `code` the service's stable word, `detail` its sentence that says what to do.
    """

    def __init__(self, status: int, code: str, title: str, detail: str) -> None:
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        super().__init__(f"{title}: {detail}" if detail and detail != title else title or f"HTTP {status}")


class Invalid(Problem):
    """The request is at fault: sending the same again cannot help."""


class Denied(Problem):
    """The caller is unknown or may not do this."""


class NotFound(Problem):
    """Nothing is there under this name, or not yet."""


class Conflict(Problem):
    """The event_id was used before for other feedback. The first stands; send the new one under a new id."""


class Overloaded(Problem):
    """Too many requests, also after waiting as told. Nothing was stored."""


class Unavailable(Problem):
    """The service cannot do its work now (its log is away, or it failed), also after trying again."""


_BY_STATUS: dict[int, type[Problem]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Conflict,
    429: Overloaded,
}


def problem_from(response: httpx.Response) -> Problem:
    """The error that an answer of status 400 or above stands for, whether or not it is a problem document."""
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
    where = f"{response.request.method} {response.request.url}"
    if kind is Unavailable:
        return f"{where} failed with status {response.status_code}; try again later, and look at the service's log."
    if kind is NotFound:
        return f"{where} does not exist; check the id, and that this is the address of the right service."
    return f"{where} was refused with status {response.status_code}."
