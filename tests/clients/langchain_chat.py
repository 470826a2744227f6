"""LangChain's ChatOpenAI against inference: `langchain_chat.py URL`. Exits with 0 if every call does what it should."""

from __future__ import annotations

import asyncio
import sys

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import BadRequestError
from pydantic import BaseModel, SecretStr

url = sys.argv[1]


class Weather(BaseModel):
    """How warm a city is."""

    city: str
    degrees: int


@tool
def get_weather(city: str) -> str:
    """Return how warm a city is."""
    return "7 degrees"


def model(**options: object) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{url}/v1",
        api_key=SecretStr("none"),
        model="assistant",
        max_retries=0,
        timeout=20,
        **options,
    )


chat = model(temperature=0)
conversation = [SystemMessage("Be brief."), HumanMessage("How warm is Oslo?")]

answer = chat.invoke(conversation)
assert answer.content == "hello", answer
assert answer.usage_metadata["output_tokens"] == 6, answer
print("ok invoke")

chunks = list(model(stream_usage=True).stream(conversation))
assert "".join(str(chunk.content) for chunk in chunks) == "hello", chunks
assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 6, chunks
print("ok stream with usage")


async def stream_twice() -> list[str]:
    whole = await chat.ainvoke(conversation)
    return [str(whole.content), "".join([str(chunk.content) async for chunk in chat.astream(conversation)])]


assert asyncio.run(stream_twice()) == ["hello", "hello"]
print("ok asynchronous")

with_tools = chat.bind_tools([get_weather])
asked = with_tools.invoke(conversation)
[call] = asked.tool_calls
assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"}), call
result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
assert with_tools.invoke([*conversation, asked, result]).content == "It is 7 degrees."
print("ok tools")

streamed = None
for chunk in with_tools.stream(conversation):
    streamed = chunk if streamed is None else streamed + chunk
assert streamed is not None and streamed.tool_calls[0]["args"] == {"city": "Oslo"}, streamed
print("ok streamed tools")

for method in ("json_schema", "json_mode"):
    found = chat.with_structured_output(Weather, method=method).invoke(conversation)
    assert found == Weather(city="Oslo", degrees=7), found
print("ok structured output")

tokens = model(logprobs=True, top_logprobs=2).invoke(conversation).response_metadata["logprobs"]["content"]
assert "".join(token["token"] for token in tokens) == "hello", tokens
print("ok logprobs")

try:
    model(verbosity="low").invoke(conversation)
except BadRequestError as error:
    assert (error.code, error.param) == ("unsupported_parameter", "verbosity"), error
else:
    raise AssertionError("verbosity was ignored")
print("ok unsupported parameter")
