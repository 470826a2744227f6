"""LangChain's models with Loopwright's handler, against feedback: `langchain_handler.py URL`."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from typing import Any

from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser

from loopwright import BackgroundLoopwright, Loopwright, Retry
from loopwright.integrations.langchain import LoopwrightCallbackHandler

url = sys.argv[1]
loop = Loopwright(feedback_url=url)
background = BackgroundLoopwright(loop)
handler = LoopwrightCallbackHandler(background)
model = FakeListChatModel(responses=["Wellington."])
CONFIG: Any = {"callbacks": [handler], "metadata": {"user_id": "ann"}}
CONVERSATION = [SystemMessage("Be brief."), HumanMessage([{"type": "text", "text": "Capital?"}])]


def recorded() -> dict[str, Any]:
    assert handler.flush()
    with urllib.request.urlopen(f"{url}/responses") as answer:
        return {each["response_id"]: each for each in json.load(answer)}


answer = model.invoke(CONVERSATION, config=CONFIG)
found = recorded()[answer.id]
assert [(m["role"], m["content"]) for m in found["messages"]] == [
    ("system", "Be brief."),
    ("user", "Capital?"),
], found
assert found["choices"][0]["text"] == "Wellington.", found
assert found["user_id"].startswith("u_"), found
assert loop.thumbs_up(answer.id, "ann").status == "accepted"
print("ok invoke, and feedback on its id")

chunks = list(model.stream("Capital?", config=CONFIG))
assert recorded()[chunks[0].id]["choices"][0]["text"] == "Wellington.", recorded()
print("ok stream")


async def asynchronous() -> list[Any]:
    whole = await model.ainvoke("Capital?", config=CONFIG)
    streamed = [chunk async for chunk in model.astream("Capital?", config=CONFIG)]
    return [whole.id, streamed[0].id]


assert all(each in recorded() for each in asyncio.run(asynchronous()))
print("ok asynchronous")

chain = model | StrOutputParser()
assert chain.invoke("Capital?", config=CONFIG) == "Wellington."
assert handler.last_response_id in recorded()
print("ok chain")

call = {"id": "c1", "name": "look_up", "args": {"of": "New Zealand"}}
history = [
    HumanMessage("Capital?"),
    AIMessage("", tool_calls=[call]),
    ToolMessage("Wellington", tool_call_id="c1"),
]
answer = model.invoke(history, config=CONFIG)
assert recorded()[answer.id]["messages"][1]["tool_calls"][0]["function"]["name"] == "look_up", recorded()
print("ok tools in the conversation")

image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}])
before = recorded()
assert model.invoke([image], config=CONFIG).content == "Wellington."
assert recorded() == before
broken = LoopwrightCallbackHandler(
    BackgroundLoopwright(Loopwright(feedback_url="http://127.0.0.1:9", retry=Retry(attempts=1)))
)
assert model.invoke("Hi", config={"callbacks": [broken]}).content == "Wellington."
print("ok what cannot be recorded fails no request")
