"""litellm against inference: `litellm_chat.py URL`. Exits with 0 if every call does what it should."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download at import
import litellm

url = sys.argv[1]
litellm.telemetry = False
MESSAGES = [{"role": "user", "content": "How warm is Oslo?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
OPTIONS: dict[str, Any] = {
    "model": "openai/assistant",
    "api_base": f"{url}/v1",
    "api_key": "none",
    "num_retries": 0,
    "timeout": 20,
}


def complete(**fields: Any) -> Any:
    return litellm.completion(**(OPTIONS | {"messages": MESSAGES} | fields))


answer = complete(temperature=0, user="ann", metadata={"page": "7"})
assert answer.choices[0].message.content == "hello", answer
assert answer.usage.completion_tokens == 6, answer
print("ok completion")

chunks = list(complete(stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello", chunks
print("ok stream")


async def asynchronous() -> list[str]:
    whole = await litellm.acompletion(**OPTIONS, messages=MESSAGES)
    stream = await litellm.acompletion(**OPTIONS, messages=MESSAGES, stream=True)
    texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    return [whole.choices[0].message.content, "".join(texts)]


assert asyncio.run(asynchronous()) == ["hello", "hello"]
print("ok asynchronous")

asked = complete(tools=[TOOL]).choices[0].message
[call] = asked.tool_calls
assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Oslo"}'), call
history = [*MESSAGES, asked, {"role": "tool", "tool_call_id": call.id, "content": "7 degrees"}]
assert complete(tools=[TOOL], messages=history).choices[0].message.content == "It is 7 degrees."
print("ok tools")

schema = {
    "type": "json_schema",
    "json_schema": {"name": "weather", "schema": {"type": "object", "properties": {}}, "strict": True},
}
assert complete(response_format=schema).choices[0].message.content == '{"city": "Oslo", "degrees": 7}'
print("ok structured output")

tokens = complete(logprobs=True, top_logprobs=2).choices[0].logprobs.content
assert "".join(token.token for token in tokens) == "hello", tokens
print("ok logprobs")

try:
    complete(extra_body={"echo": True})
except litellm.BadRequestError as error:
    assert "echo" in str(error), error
else:
    raise AssertionError("echo was ignored")
print("ok unsupported parameter")
