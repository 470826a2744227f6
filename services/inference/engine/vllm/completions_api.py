"""Formats of vLLM's HTTP API: requests for completions, the events of their streams, models, errors. Pure functions.

Read from the sources of vLLM 0.32.0 (`vllm/entrypoints/openai`). Prompts are sent as token ids to `/v1/completions`:
gateway, training and gate build them with the same function, and text of users cannot become control tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.inference.core.generation_request import GenerationRequest

MIN_TOP_P = 1e-6
"""vLLM refuses 0. With this value the most likely token is always drawn."""
MAX_MESSAGE = 1000


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


def completion_body(
    request: GenerationRequest,
    model: str,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    stop: Sequence[str],
    stop_token_ids: Sequence[int],
) -> dict[str, Any]:
    """Return the body of a streamed completion.

    Every sampling field is set, because a server's defaults come from the base's files.
    """
    sampling = request.sampling
    greedy = sampling.temperature == 0
    # vLLM refuses several greedy choices. The most likely of one token is the same.
    several_greedy = greedy and request.n > 1
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "n": request.n,
        "temperature": 1.0 if several_greedy else sampling.temperature,
        "top_p": 1.0 if greedy else max(sampling.top_p, MIN_TOP_P),
        "top_k": 1 if several_greedy else 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(stop),
        "stop_token_ids": list(stop_token_ids),
        "skip_special_tokens": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if sampling.seed is not None and not greedy:
        body["seed"] = sampling.seed
    return body


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


def parse_event(event: Mapping[str, Any]) -> list[ChoiceDelta]:
    """Return what a stream's event adds to the choices. Raises KeyError or TypeError if it is something else."""
    usage = event.get("usage") or {}
    return [
        ChoiceDelta(
            int(choice["index"]),
            choice.get("text") or "",
            choice.get("finish_reason"),
            usage.get("completion_tokens"),
        )
        for choice in event["choices"]
    ]


def error_message(value: Any, fallback: str) -> str:
    """Return the message of an error response, on one line."""
    error = value.get("error", value) if isinstance(value, Mapping) else value
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("detail")
    text = error if isinstance(error, str) and error else fallback
    return " ".join(text.split())[:MAX_MESSAGE]
