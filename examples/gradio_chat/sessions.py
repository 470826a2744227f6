"""The chat behind the page: streams answers, and knows which response each message is. It does not need Gradio.

Gradio's like event names a message by its position in the conversation; feedback needs the id of the response.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from openai import OpenAI

from loopwright import Loopwright

MAX_ANSWERS: Final = 10_000
"""Answers whose likes can be sent. The oldest are forgotten first."""


@dataclass(slots=True)
class Answer:
    """One answer, and the event that says what its user thinks of it now."""

    response_id: str
    event_id: str | None = None


class ChatSessions:
    """The conversations of all visitors.

    Args:
        chat: Client of inference.
        loop: Client of the feedback service.
        model: Line that answers.

    """

    def __init__(self, chat: OpenAI, loop: Loopwright, model: str = "assistant") -> None:
        self._chat, self._loop, self._model = chat, loop, model
        self._answers: OrderedDict[tuple[str, int], Answer] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, message: str, history: Sequence[Mapping[str, Any]], session: str) -> Iterator[str]:
        """Yield the answer to a message as it grows."""
        turns: list[Any] = [{"role": turn["role"], "content": text_of(turn["content"])} for turn in history]
        stream = self._chat.chat.completions.create(
            model=self._model,
            messages=[*turns, {"role": "user", "content": message}],
            stream=True,
            user=session,
        )
        text = ""
        for chunk in stream:
            # The question follows after the history, and the answer after the question.
            self._remember((session, len(history) + 1), chunk.id)
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            yield text

    def like(self, position: int, liked: bool | str, session: str) -> str:
        """Send what a visitor thinks of the message at this position, and return what to show.

        Args:
            position: Index of the message in the conversation.
            liked: True or False; anything else if the visitor takes a like back.
            session: The visitor.

        """
        with self._lock:
            answer = self._answers.get((session, position))
        if answer is None:
            return "This answer is too old to be rated."
        if isinstance(liked, bool):
            send = self._loop.thumbs_up if liked else self._loop.thumbs_down
            answer.event_id = send(answer.response_id, session).event_id
            return "Thank you."
        if answer.event_id is not None:
            self._loop.retract(answer.response_id, session, answer.event_id)
            answer.event_id = None
        return "Taken back."

    def _remember(self, place: tuple[str, int], response_id: str) -> None:
        with self._lock:
            known = self._answers.get(place)
            if known is None or known.response_id != response_id:
                self._answers[place] = Answer(response_id)
                self._answers.move_to_end(place)
            while len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)


def text_of(content: Any) -> str:
    """Return the text of a message in Gradio's history: a text, or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(
        part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
    )
