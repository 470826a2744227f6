"""Options of a chat request that only some engines support: tools, structured output, logprobs, penalties and others.

Names and values are OpenAI's, and vLLM's where OpenAI has none, so an engine behind an OpenAI-compatible server can
pass `to_json` on as it is. References: https://platform.openai.com/docs/api-reference/chat/create and
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from shared.request_values import WHOLE_NUMBER

MAX_TOOLS: Final = 128
MAX_TOP_LOGPROBS: Final = 20
MAX_BIASED_TOKENS: Final = 1024
MAX_LISTED_TOKENS: Final = 1024
MAX_TOKEN_ID: Final = 2**31 - 1

FunctionName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID), WHOLE_NUMBER]
TokenIds = Annotated[tuple[TokenId, ...], Field(max_length=MAX_LISTED_TOKENS)]
JsonObject = dict[str, JsonValue]


class _Option(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, populate_by_name=True)


class FunctionDefinition(_Option):
    """A function that the model may ask the app to call. `parameters` is a JSON Schema."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ToolDefinition(_Option):
    """A tool of a request. Only functions exist."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(_Option):
    """Name of a function."""

    name: FunctionName


class NamedTool(_Option):
    """A `tool_choice` that makes the model call one function."""

    type: Literal["function"]
    function: FunctionReference


class JsonSchemaFormat(_Option):
    """Schema of a structured answer. The field `schema` is a JSON Schema."""

    name: FunctionName
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Option):
    """Form of the answer: any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _require_a_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("the type json_schema needs the field json_schema")
        return self


class GenerationOptions(_Option):
    """Options of a request. A field that is None is not set. JSON-safe, and bounded by the size of a request body."""

    tools: Annotated[tuple[ToolDefinition, ...], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE_NUMBER] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,10}$")],
                Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
            ],
            Field(max_length=MAX_BIASED_TOKENS),
        ]
        | None
    ) = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    # Fields of vLLM that OpenAI does not have.
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID), WHOLE_NUMBER] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKEN_ID), WHOLE_NUMBER] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: TokenIds | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Annotated[tuple[str, ...], Field(max_length=MAX_LISTED_TOKENS)] | None = None
    structured_outputs: JsonObject | None = None

    def names(self) -> frozenset[str]:
        """Return the names of the fields that are set."""
        return frozenset(name for name in GenerationOptions.model_fields if getattr(self, name) is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set as JSON values, in OpenAI's form."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


OPTION_NAMES: Final = frozenset(GenerationOptions.model_fields)
"""All options. An engine supports some of them (`InferenceEngine.supported_options`)."""
_WITHOUT_EFFECT: Final[Mapping[str, tuple[Any, ...]]] = {
    "tools": ((),),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ((),),
    "allowed_token_ids": ((),),
    "bad_words": ((),),
}
"""Values that change no answer, whatever the engine: clients and frameworks send many of them always."""


def effective_options(values: GenerationOptions) -> GenerationOptions:
    """Return only those options that can change the answer, so that no engine must support the others."""
    chosen = {
        name: value
        for name in GenerationOptions.model_fields
        if (value := getattr(values, name)) is not None and value not in _WITHOUT_EFFECT.get(name, ())
    }
    if "tools" not in chosen:
        chosen.pop("tool_choice", None)
        chosen.pop("parallel_tool_calls", None)
    if "logprobs" not in chosen:
        chosen.pop("top_logprobs", None)
    if values.response_format is not None and values.response_format.type == "text":
        del chosen["response_format"]
    return GenerationOptions.model_construct(**chosen)
