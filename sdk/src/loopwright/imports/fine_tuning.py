"""OpenAI's fine-tuning data for chat models: `{"messages": [...]}` per line.

Each text of an assistant that OpenAI would train on (`weight` not 0) becomes a response to the messages before it, with
one event:

- **liked** (thumbs up), because the file says that the answer is good, and has no worse one;
- or **corrected**: if the row has a model's answer in the field `original`, that is the response, and the row's last
  answer is the correction of it.

Format: https://platform.openai.com/docs/api-reference/fine-tuning/chat-input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from loopwright.imports.json_values import read_objects
from loopwright.imports.rows import BadRow, Defaults, Json, ParsedRow, Row, content_id, messages_of, text_of

ORIGINAL: Final = "original"


def read_fine_tuning(stream: BinaryIO, defaults: Defaults) -> Iterator[ParsedRow]:
    """Yield the rows of a file."""

    def parse(number: int, content: Json) -> Row:
        messages = messages_of(content.get("messages"), "messages")
        answers = [at for at, message in enumerate(messages) if at and _is_trained(message)]
        if not answers:
            raise BadRow("messages has no text of role assistant to learn, after a message before it")
        if content.get(ORIGINAL) is not None:
            return _corrected(number, content, messages[: answers[-1] + 1], defaults)
        responses, events = [], []
        for at in answers:
            answer = text_of(messages[at].get("content"), f"messages[{at}].content")
            response_id = content_id("liked", defaults.line, defaults.version, messages[:at], answer)
            responses.append(defaults.response(response_id, messages[:at], answer))
            events.append(defaults.event(response_id, "thumbs", "up"))
        return Row(number, responses, events, content)

    return read_objects(stream, parse)


def _is_trained(message: Json) -> bool:
    """Return whether OpenAI would train on a message, and it has a text: calls of tools have none."""
    is_answer = message.get("role") == "assistant" and message.get("weight") != 0
    return is_answer and message.get("content") is not None


def _corrected(number: int, content: Json, messages: list[Json], defaults: Defaults) -> Row:
    original = text_of(content[ORIGINAL], ORIGINAL)
    correction = text_of(messages[-1].get("content"), f"messages[{len(messages) - 1}].content")
    response_id = content_id("corrected", defaults.line, defaults.version, messages, original)
    response = defaults.response(response_id, messages[:-1], original)
    return Row(number, [response], [defaults.event(response_id, "correction", correction)], content)
