"""Fetch Open WebUI's feedback and keep Loopwright's equal to it: edits replace events, deletions retract them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from loopwright.client import Loopwright
from loopwright.connectors.openwebui_feedback import (
    OpenWebuiFeedback,
    Unusable,
    id_of,
    parse_feedback,
    retraction,
)
from loopwright.connectors.openwebui_state import SentEvent, SentFeedback, SentStore
from loopwright.errors import LoopwrightError
from loopwright.imports.importer import raise_if_not_taken
from loopwright.imports.json_buffer import JsonBuffer
from loopwright.imports.json_values import array_values

EXPORTS: Final = ("/api/v1/evaluations/feedbacks/all/export", "/api/v1/evaluations/feedbacks/all")
"""Routes that list all feedback: the current one, and that of versions before 0.6."""
OBJECTS_AT_ONCE: Final = 200
TIMEOUT_S: Final = 60.0


class ExportFailed(LoopwrightError):
    """Open WebUI does not give its feedback. The message says what to do."""

    code = "export_failed"


class ExportUnavailable(ExportFailed):
    """Open WebUI is not reachable, or fails. It may work again later."""

    code = "export_unavailable"


@dataclass(slots=True)
class SyncReport:
    """What one round did."""

    objects: int = 0
    """Feedback objects in Open WebUI."""
    sent: int = 0
    """Events of new and changed feedback."""
    retracted: int = 0
    """Events that were retracted, because their feedback was changed or deleted."""
    unchanged: int = 0
    other_models: int = 0
    refused: int = 0
    refusals: list[str] = field(default_factory=list)
    """The first reasons, with the ids of the objects."""


class OpenWebui:
    """Open WebUI's API for administrators.

    Args:
        url: Base URL of Open WebUI.
        key: API key of an administrator.
        transport: HTTP transport to use instead of the network, for tests.

    """

    def __init__(self, url: str, key: str, transport: httpx.BaseTransport | None = None) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            timeout=TIMEOUT_S, transport=transport, headers={"Authorization": f"Bearer {key}"}
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @contextmanager
    def objects(self) -> Iterator[Iterator[Any]]:
        """Fetch all feedback objects. They are read one by one.

        Raises:
            ExportFailed: Open WebUI is not reachable, refuses the key, or its answer is not a complete list.

        """
        try:
            for route in EXPORTS:
                with self._http.stream("GET", self._url + route) as answer:
                    if answer.status_code == 404 and route != EXPORTS[-1]:
                        continue
                    self._check(answer)
                    yield _values(answer)
                    return
        except httpx.InvalidURL as error:
            raise ExportFailed(f"{self._url} is not a URL ({error})") from error
        except httpx.HTTPError as error:
            reason = str(error) or "no response"
            raise ExportUnavailable(
                f"{self._url} is not reachable ({reason}). Check the address, and that Open WebUI runs"
            ) from error

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code in {401, 403}:
            raise ExportFailed(
                f"{self._url} refuses the key (status {answer.status_code}). Use an API key of an administrator, and "
                "allow API keys in the settings of Open WebUI"
            )
        if answer.status_code != 200:
            kind = ExportUnavailable if answer.status_code >= 500 else ExportFailed
            raise kind(
                f"{self._url} answered with status {answer.status_code}. Check the address, and the log of Open WebUI"
            )
        if "json" not in answer.headers.get("content-type", ""):
            raise ExportFailed(
                f"{self._url} does not answer with JSON. Check that it is the address of Open WebUI"
            )


def _values(answer: httpx.Response) -> Iterator[Any]:
    buffer = JsonBuffer(answer.iter_bytes())
    buffer.skip_space()
    if buffer.peek() != "[":
        raise ExportFailed(
            "Open WebUI did not answer with a list of feedback. Check the address and its version"
        )
    for value in array_values(buffer):
        if value.fault is not None:
            raise ExportFailed(f"Open WebUI's list of feedback cannot be read: {value.fault}")
        yield value.content


@dataclass(slots=True)
class Sync:
    """Keeps the events of Loopwright equal to the feedback of Open WebUI.

    Args:
        webui: Where feedback comes from.
        loop: Where events go.
        store: What was sent.
        line: Line of the events; None for the service's own.
        models: Only feedback on these models; all if empty.
        stop: Returns whether to stop before the next request.

    """

    webui: OpenWebui
    loop: Loopwright
    store: SentStore
    line: str | None = None
    models: Collection[str] = ()
    stop: Callable[[], bool] = lambda: False

    def run(self) -> SyncReport:
        """Fetch all feedback, and send what has changed. Repeating it after an error has no further effect.

        Raises:
            LoopwrightError: Open WebUI or the feedback service is not available. What was sent is remembered.

        """
        report, round_ = SyncReport(), self.store.next_round()
        with self.webui.objects() as objects:
            chunk: list[Any] = []
            for content in objects:
                chunk.append(content)
                if len(chunk) >= OBJECTS_AT_ONCE:
                    self._take(chunk, round_, report)
                    chunk = []
                    if self.stop():
                        return report
            self._take(chunk, round_, report)
        self._retract_unseen(round_, report)
        return report

    def _take(self, chunk: Sequence[Any], round_: int, report: SyncReport) -> None:
        changed: list[tuple[OpenWebuiFeedback, SentFeedback | None]] = []
        seen: list[str] = []
        for content in chunk:
            report.objects += 1
            try:
                feedback = parse_feedback(content)
            except Unusable as error:
                # Seen nevertheless: what cannot be read now was not deleted.
                seen += [found] if (found := id_of(content)) else []
                _refuse(report, content, str(error))
                continue
            sent = self.store.get(feedback.id)
            if self.models and feedback.model not in self.models and sent is None:
                report.other_models += 1
            elif sent is not None and sent.digest == feedback.digest:
                report.unchanged += 1
                seen.append(feedback.id)
            else:
                changed.append((feedback, sent))
        self.store.mark_seen(seen, round_)
        self._send(changed, round_, report)

    def _send(
        self,
        changed: Sequence[tuple[OpenWebuiFeedback, SentFeedback | None]],
        round_: int,
        report: SyncReport,
    ) -> None:
        rows, owners, replaced = [], [], 0
        for at, (feedback, sent) in enumerate(changed):
            new = [feedback.event(kind, self.line) for kind in feedback.signals]
            old = [retraction(event, self.line) for event in _withdrawn(feedback, sent)]
            rows += [*new, *old]
            owners += [at] * (len(new) + len(old))
            replaced += len(old)
        # Remembered first: events that arrive although the request fails must be retracted one day.
        self.store.put([_maybe_sent(feedback, sent) for feedback, sent in changed], round_)
        results = self.loop.send_many(rows) if rows else []
        for result in results:
            raise_if_not_taken(result)
        faults = {
            owner: result.detail or result.code or ""
            for owner, result in zip(owners, results, strict=True)
            if result.is_refused
        }
        for at, reason in faults.items():
            _refuse(report, {"id": changed[at][0].id}, reason)
        report.sent += len(rows) - replaced - len(faults)
        report.retracted += replaced
        done = [SentFeedback(feedback.id, feedback.digest, feedback.events()) for feedback, _ in changed]
        self.store.put(done, round_)

    def _retract_unseen(self, round_: int, report: SyncReport) -> None:
        while not self.stop() and (gone := self.store.unseen(round_, OBJECTS_AT_ONCE)):
            rows = [retraction(event, self.line) for each in gone for event in each.events]
            for result in self.loop.send_many(rows) if rows else []:
                raise_if_not_taken(result)
            report.retracted += len(rows)
            self.store.remove(each.id for each in gone)


def _withdrawn(feedback: OpenWebuiFeedback, sent: SentFeedback | None) -> list[SentEvent]:
    """Return the events that no new one replaces. The newest signal of a user, response and kind counts."""
    slots = {event.slot for event in feedback.events()}
    return [event for event in sent.events if event.slot not in slots] if sent is not None else []


def _maybe_sent(feedback: OpenWebuiFeedback, sent: SentFeedback | None) -> SentFeedback:
    """Return a feedback object of which some or all events will be in the log."""
    earlier = sent.events if sent is not None else ()
    return SentFeedback(feedback.id, "", tuple(dict.fromkeys((*earlier, *feedback.events()))))


MAX_REFUSALS: Final = 20


def _refuse(report: SyncReport, content: Any, reason: str) -> None:
    report.refused += 1
    if len(report.refusals) < MAX_REFUSALS:
        report.refusals.append(f"{id_of(content) or 'an object without id'}: {reason}")
