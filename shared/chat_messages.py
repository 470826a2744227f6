"""Messages of a conversation as OpenAI's clients send them: content as text, as parts, or absent beside tool calls.

Inference and feedback accept the same messages, so an app that records the responses of its own model server can pass
its conversations on as they are. Reference: https://platform.openai.com/docs/api-reference/chat/create.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from shared.events import MAX_CONTENT, MAX_TOOL_CALLS, MAX_TOOL_NAME, Message, ToolCall, ToolFunction

MAX_PARTS: Final = 10_000
TEXT_TAG, PARTS_TAG = "#text", "#parts"
CONTENT_TAGS: Final = frozenset({TEXT_TAG, PARTS_TAG})
"""Parts of an error's location that name no field."""
ContentText = Annotated[str, Field(max_length=MAX_CONTENT)]
CallName = Annotated[str, Field(max_length=MAX_TOOL_NAME)]


class UnsupportedContent(ValueError):
    """Contents that are valid at OpenAI, but that no text model can answer."""


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class TextPart(_Input):
    """Part of a message: text, or the text of a refusal."""

    type: Literal["text", "refusal"]
    text: ContentText | None = None
    refusal: ContentText | None = None

    @model_validator(mode="after")
    def _require_text(self) -> TextPart:
        if (self.text if self.type == "text" else self.refusal) is None:
            raise ValueError(f"the field {self.type} is missing: send it")
        return self

    def content(self) -> str:
        """Return the text."""
        return (self.text if self.type == "text" else self.refusal) or ""


class CalledFunction(_Input):
    """The function of an earlier tool call."""

    name: CallName
    arguments: ContentText = ""


class EarlierToolCall(_Input):
    """A tool call of an earlier answer."""

    id: CallName = ""
    type: Literal["function"] = "function"
    function: CalledFunction


def _part_kind(value: Any) -> Any:
    """Refuse parts that are not text, with a message that says so."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("text", "refusal"):
        named = kind if kind in _OTHER_PARTS else "this type"
        raise UnsupportedContent(f"parts of type {named} are not supported: send text")
    return value


_OTHER_PARTS: Final = ("image_url", "input_audio", "file", "video_url", "audio_url", "image")


def _content_kind(value: Any) -> str:
    return PARTS_TAG if isinstance(value, list) else TEXT_TAG


MessageContent = Annotated[
    Annotated[ContentText, Tag(TEXT_TAG)]
    | Annotated[
        Annotated[list[Annotated[TextPart, BeforeValidator(_part_kind)]], Field(max_length=MAX_PARTS)],
        Tag(PARTS_TAG),
    ],
    Discriminator(_content_kind),
]


class ChatMessage(_Input):
    """One message of the conversation. Fields that are not declared are ignored: clients send stored messages again."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: MessageContent | None = None
    refusal: ContentText | None = None
    name: CallName | None = None
    tool_calls: Annotated[list[EarlierToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: CallName | None = None
    function_call: Any = None
    audio: Any = None

    @model_validator(mode="after")
    def _check_role(self) -> ChatMessage:
        if self.function_call is not None or self.audio is not None:
            raise UnsupportedContent("function_call and audio are not supported: use tool_calls, and text")
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} needs the field content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only a message of role assistant has tool_calls: leave them out elsewhere")
        return self

    def text(self) -> str:
        """Return the content as one string; parts are joined without a separator."""
        if isinstance(self.content, list):
            return "".join(part.content() for part in self.content)
        return self.content or self.refusal or ""

    def to_message(self) -> Message:
        """Return the message as engines and records have it."""
        calls = tuple(
            ToolCall(
                id=call.id,
                type="function",
                function=ToolFunction(name=call.function.name, arguments=call.function.arguments),
            )
            for call in self.tool_calls or ()
        )
        return Message(
            role=self.role,
            content=self.text(),
            name=self.name,
            tool_calls=calls or None,
            tool_call_id=self.tool_call_id,
        )
