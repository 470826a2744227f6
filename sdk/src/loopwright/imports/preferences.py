"""OpenAI's preference data (DPO): `{"input": {"messages": ...}, "preferred_output": ..., "non_preferred_output": ...}`.

The preferred output becomes a response, and the event says that it is preferred over the other one.

Format: https://platform.openai.com/docs/api-reference/fine-tuning/preference-input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from loopwright.imports.json_values import read_objects
from loopwright.imports.rows import BadRow, Defaults, Json, ParsedRow, Row, content_id, messages_of, text_of


def read_preferences(stream: BinaryIO, defaults: Defaults) -> Iterator[ParsedRow]:
    """Yield the rows of a file."""

    def parse(number: int, content: Json) -> Row:
        question = content.get("input")
        if not isinstance(question, dict):
            raise BadRow("input is not an object")
        messages = messages_of(question.get("messages"), "input.messages")
        better = _output(content, "preferred_output")
        worse = _output(content, "non_preferred_output")
        response_id = content_id("preferred", defaults.line, defaults.version, messages, better, worse)
        event = defaults.event(response_id, "preference", {"over": worse})
        return Row(number, [defaults.response(response_id, messages, better)], [event], content)

    return read_objects(stream, parse)


def _output(content: Json, name: str) -> str:
    """Return the text of the last message of the assistant, as it is the answer."""
    messages: list[Any] = messages_of(content.get(name), name)
    if messages[-1].get("role") != "assistant":
        raise BadRow(f"the last message of {name} is not of role assistant")
    return text_of(messages[-1].get("content"), f"{name}[{len(messages) - 1}].content")
