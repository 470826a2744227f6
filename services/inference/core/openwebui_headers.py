"""Ids that Open WebUI sends as headers (`ENABLE_FORWARD_USER_INFO_HEADERS`), so that feedback finds the response. Pure.

Its feedback names a message, and never the completion's id. So the response of an answer gets an id made of the
message's, as `loopwright connect openwebui` makes it. Open WebUI sends the same message id with its own tasks as well,
such as titles and search queries: these are not what a user rates, and get ids of their own.

Reference: `backend/open_webui/utils/headers.py` of open-webui/open-webui.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter, ValidationError

from shared.events import Id
from shared.user_ids import check_user_id

USER_HEADER: Final = "X-OpenWebUI-User-Id"
CHAT_HEADER: Final = "X-OpenWebUI-Chat-Id"
MESSAGE_HEADER: Final = "X-OpenWebUI-Message-Id"
TASK_HEADER: Final = "X-OpenWebUI-Task"
"""Not sent by default. A header of the connection with the value `{{TASK}}` has the task, and is empty for answers."""
RESPONSE_PREFIX: Final = "openwebui-"
CHAT_METADATA: Final = "openwebui_chat_id"
MAX_CHAT_ID: Final = 128
_ID: TypeAdapter[str] = TypeAdapter(Id)


@dataclass(frozen=True, slots=True)
class OpenWebuiIds:
    """Ids of a request; None for those that it does not have, or that are not valid."""

    response_id: str | None = None
    user_id: str | None = None
    chat_id: str | None = None

    def metadata(self) -> dict[str, str]:
        """Return the metadata to record with the response."""
        return {CHAT_METADATA: self.chat_id} if self.chat_id else {}


def openwebui_ids(headers: Mapping[str, str], *, streamed: bool) -> OpenWebuiIds:
    """Return the ids of a request.

    Args:
        headers: The request's headers, whatever the case of their names.
        streamed: Whether the answer is streamed. Answers are by default, and tasks are not.

    """
    task = headers.get(TASK_HEADER)
    is_answer = streamed if task is None else not task.strip()
    chat = headers.get(CHAT_HEADER, "")
    return OpenWebuiIds(
        response_id=_response_id(headers.get(MESSAGE_HEADER)) if is_answer else None,
        user_id=_user_id(headers.get(USER_HEADER)),
        chat_id=chat if 0 < len(chat) <= MAX_CHAT_ID and chat.isprintable() else None,
    )


def _response_id(message_id: str | None) -> str | None:
    if not message_id:
        return None
    try:
        return _ID.validate_python(f"{RESPONSE_PREFIX}{message_id}")
    except ValidationError:
        return None


def _user_id(user_id: str | None) -> str | None:
    try:
        return check_user_id(user_id) if user_id else None
    except ValueError:
        return None
