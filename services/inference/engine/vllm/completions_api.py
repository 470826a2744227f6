"""Formats of vLLM's HTTP API: requests for completions, the events of their streams, models, errors. Pure functions.

Read from the sources of vLLM 0.32.0 (`vllm/entrypoints/openai`). Prompts are sent as token ids to `/v1/completions`:
gateway, training and gate build them with the same function, and text of users cannot become control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.inference.core.generation_request import (
    GenerationRequest,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)

COMPLETIONS: Final = "/v1/completions"
MAX_MESSAGE: Final = 1000
LOWEST_LOGPROB: Final = -9999.0
"""vLLM's value for a token that is impossible."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a server lists. `parent` is None for the base; `root` is the path or id it was loaded from."""

    name: str
    root: str
    parent: str | None
    max_model_len: int | None


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What an event adds to a choice. `completion_tokens` counts the tokens of the choice so far."""

    index: int
    text: str
    finish_reason: str | None
    completion_tokens: int | None
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A streamed HTTP call that generates an answer.

    Attributes:
        path: Where it is sent.
        body: What is sent, with the version as the model.
        parse_event: Returns what an event of the stream adds. Raises KeyError or TypeError if it is something else.
        prompt_tokens: Length of the prompt, or None if only the server knows it.

    """

    path: str
    body: dict[str, Any]
    parse_event: Callable[[Mapping[str, Any]], list[ChoiceDelta]]
    prompt_tokens: int | None


def completion_call(
    request: GenerationRequest,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    stop: Sequence[str],
    stop_token_ids: Sequence[int],
) -> Call:
    """Return the call for a prompt of token ids."""
    options = request.options.to_json()
    body = sampling_fields(request, stop, stop_token_ids) | {
        "prompt": list(prompt),
        "max_tokens": max_tokens,
    }
    top_logprobs = options.pop("top_logprobs", 0)
    if options.pop("logprobs", False):
        body["logprobs"] = top_logprobs  # a number here, and true in the chat API
    return Call(
        COMPLETIONS,
        _merged(body, options),
        lambda event: parse_completion_event(event, top_logprobs),
        len(prompt),
    )


def sampling_fields(
    request: GenerationRequest, stop: Sequence[str], stop_token_ids: Sequence[int]
) -> dict[str, Any]:
    """Return the fields of a streamed request that both APIs have.

    Every sampling field is set, because a server's defaults come from the base's files.
    """
    sampling = request.sampling
    greedy = sampling.temperature == 0
    # vLLM refuses several greedy choices. The most likely of one token is the same.
    several_greedy = greedy and request.n > 1
    body: dict[str, Any] = {
        "model": request.version,
        "n": request.n,
        "temperature": 1.0 if several_greedy else sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
        "top_k": 1 if several_greedy else 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(stop),
        "stop_token_ids": [] if request.options.ignore_eos else list(stop_token_ids),
        "skip_special_tokens": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if sampling.seed is not None and not greedy:
        body["seed"] = sampling.seed
    return body


def _merged(body: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the body with the options; stop tokens are added to those of the base."""
    merged = body | options
    merged["stop_token_ids"] = [*body["stop_token_ids"], *options.get("stop_token_ids", [])]
    if body["top_k"] == 1:
        merged["top_k"] = 1
    return merged


def smoke_test_body(model: str, prompt: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """Return the body of a smoke test: a short greedy answer with the log-probabilities of its tokens."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "logprobs": 1,
        "stream": False,
    }


def smoke_test_problem(answer: Mapping[str, Any]) -> str | None:
    """Return why the answer to a smoke test is unusable, or None."""
    try:
        choice = answer["choices"][0]
        logprobs = choice["logprobs"]["token_logprobs"]
        tokens = answer["usage"]["completion_tokens"]
    except (KeyError, IndexError, TypeError):
        return "the answer has no tokens"
    if not all(isinstance(value, int | float) and value > float("-inf") for value in logprobs):
        return "the model's output has values that are not finite"
    if tokens < 1 or (tokens == 1 and choice.get("finish_reason") == "stop"):
        return "the answer is empty"
    return None


def parse_models(value: Mapping[str, Any]) -> list[ServedModel]:
    """Return the models of `GET /v1/models`. Raises KeyError or TypeError if it is something else."""
    return [
        ServedModel(
            str(model["id"]),
            str(model.get("root") or model["id"]),
            model.get("parent"),
            model.get("max_model_len"),
        )
        for model in value["data"]
    ]


def parse_completion_event(event: Mapping[str, Any], top_logprobs: int) -> list[ChoiceDelta]:
    """Return what a stream's event adds to the choices. Raises KeyError or TypeError if it is something else."""
    usage = event.get("usage") or {}
    return [
        ChoiceDelta(
            int(choice["index"]),
            choice.get("text") or "",
            choice.get("finish_reason"),
            usage.get("completion_tokens"),
            _logprobs(choice.get("logprobs"), top_logprobs),
        )
        for choice in event["choices"]
    ]


def _logprobs(value: Mapping[str, Any] | None, top_logprobs: int) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities of a completion in the chat API's form.

    The completion API lists the drawn token among the most likely ones even if it is not one of them.
    """
    if not value:
        return ()
    return tuple(
        TokenLogprob(
            token,
            finite_logprob(logprob),
            _bytes(token),
            tuple(
                TopLogprob(other, finite_logprob(other_logprob), _bytes(other))
                for other, other_logprob in sorted(
                    (top or {}).items(), key=lambda item: -finite_logprob(item[1])
                )
            )[:top_logprobs],
        )
        for token, logprob, top in zip(
            value["tokens"], value["token_logprobs"], value["top_logprobs"], strict=True
        )
    )


def finite_logprob(logprob: float | None) -> float:
    """Return a log-probability as a finite number."""
    return LOWEST_LOGPROB if logprob is None else max(LOWEST_LOGPROB, float(logprob))


def _bytes(token: str) -> tuple[int, ...] | None:
    """Return the bytes of a token's text, or None for a token that is only part of a character."""
    return None if "\ufffd" in token else tuple(token.encode("utf-8", "replace"))


def error_message(value: Any, fallback: str) -> str:
    """Return the message of an error response, on one line."""
    error = value.get("error", value) if isinstance(value, Mapping) else value
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("detail")
    text = error if isinstance(error, str) and error else fallback
    return " ".join(text.split())[:MAX_MESSAGE]


def error_param(value: Any) -> str | None:
    """Return the field of the request that an error response names, or None."""
    error = value.get("error") if isinstance(value, Mapping) else None
    param = error.get("param") if isinstance(error, Mapping) else None
    return param if isinstance(param, str) and param else None
