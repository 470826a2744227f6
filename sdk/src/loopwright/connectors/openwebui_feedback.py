"""What a user said in Open WebUI: its feedback objects as signals. No I/O.

Format: `FeedbackModel` in `backend/open_webui/models/feedbacks.py` of open-webui/open-webui, as
`GET /api/v1/evaluations/feedbacks/all/export` gives it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Final

from loopwright.connectors.openwebui_state import SentEvent
from loopwright.wire import without_none

Json = dict[str, Any]
RESPONSE_PREFIX: Final = "openwebui-"
"""Inference records answers to Open WebUI under this prefix and the message's id."""
THUMBS: Final = {"1": "up", "-1": "down"}
RETRACT: Final = "retract"
MAX_TAG: Final = 64


class Unusable(Exception):
    """A feedback object cannot be used. The message says why, without any text from it."""


@dataclass(frozen=True, slots=True)
class OpenWebuiFeedback:
    """One feedback object: at most one signal per kind."""

    id: str
    user_id: str
    response_id: str
    model: str
    changed_at: int
    """Unix time in seconds."""
    signals: Mapping[str, str] = field(default_factory=dict)
    """Values by kind: `thumbs`, and `comment`."""
    tags: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Return what changes when the feedback changes."""
        return _digest(
            self.user_id, self.response_id, self.changed_at, sorted(self.signals.items()), self.tags
        )

    def event_id(self, kind: str) -> str:
        """Return the id of the event of one signal. The same feedback has the same ids in every run."""
        content = _digest(self.id, self.response_id, kind, self.signals[kind], self.changed_at, self.tags)
        return f"openwebui.{content}"

    def events(self) -> tuple[SentEvent, ...]:
        """Return the events of all signals."""
        return tuple(
            SentEvent(self.response_id, self.user_id, kind, self.event_id(kind)) for kind in self.signals
        )

    def event(self, kind: str, line: str | None) -> Json:
        """Return the row of `feedback:bulk` for one signal."""
        event = {
            "event_id": self.event_id(kind),
            "response_id": self.response_id,
            "user_id": self.user_id,
            "kind": kind,
            "value": self.signals[kind],
            "tags": list(self.tags) or None,
            "occurred_at": datetime.fromtimestamp(self.changed_at, timezone.utc).isoformat(),
            "line": line,
        }
        return without_none(event)


def retraction(event: SentEvent, line: str | None) -> Json:
    """Return the row of `feedback:bulk` that retracts an event. It has the same id in every run."""
    row = {
        "event_id": f"openwebui.{_digest(RETRACT, event.event_id)}",
        "response_id": event.response_id,
        "user_id": event.user_id,
        "kind": RETRACT,
        "value": event.event_id,
    }
    return row | ({"line": line} if line else {})


def id_of(content: Any) -> str | None:
    """Return the id of a feedback object, or None if it has none."""
    found = content.get("id") if isinstance(content, dict) else None
    return found if isinstance(found, str) and found and found.isprintable() else None


def parse_feedback(content: Any) -> OpenWebuiFeedback:
    """Return a feedback object as signals.

    Raises:
        Unusable: It names no message or no user, or a field has another type than Open WebUI's.

    """
    feedback_id = id_of(content)
    if feedback_id is None:
        raise Unusable("it has no id")
    data, meta = _part(content, "data"), _part(content, "meta")
    message_id = meta.get("message_id")
    if not isinstance(message_id, str) or not message_id:
        raise Unusable("meta.message_id is missing, so it is about no answer")
    user_id = content.get("user_id")
    if not isinstance(user_id, str) or not user_id:
        raise Unusable("user_id is missing")
    return OpenWebuiFeedback(
        id=feedback_id,
        user_id=user_id,
        response_id=f"{RESPONSE_PREFIX}{message_id}",
        model=str(data.get("model_id") or meta.get("model_id") or ""),
        changed_at=_time(content.get("updated_at") or content.get("created_at")),
        signals=_signals(data),
        tags=_tags(data),
    )


def _signals(data: Json) -> dict[str, str]:
    signals = {}
    rating, comment = data.get("rating"), data.get("comment")
    if rating is not None and rating != "":
        thumbs = THUMBS.get(str(rating)) if not isinstance(rating, bool) else None
        if thumbs is None:
            raise Unusable("data.rating is neither 1 nor -1")
        signals["thumbs"] = thumbs
    if comment is not None and not isinstance(comment, str):
        raise Unusable("data.comment is not a text")
    if comment and comment.strip():
        signals["comment"] = comment.strip()
    return signals


def _tags(data: Json) -> tuple[str, ...]:
    """Return the reason that the user chose, such as `not_factually_correct`, as a tag."""
    reason = data.get("reason")
    if not isinstance(reason, str) or not reason.isprintable() or not reason:
        return ()
    return (f"reason={reason}"[:MAX_TAG],)


def _part(content: Json, name: str) -> Json:
    part = content.get(name)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise Unusable(f"{name} is not an object")
    return part


def _time(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 253_402_300_800:
        raise Unusable("updated_at is not a Unix time in seconds")
    return value


def _digest(*content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:40]
