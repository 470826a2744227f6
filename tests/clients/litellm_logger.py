"""litellm with Loopwright's logger, against feedback: `litellm_logger.py URL`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import urllib.request
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download at import
import litellm

from loopwright import BackgroundLoopwright, Loopwright, Retry
from loopwright.integrations.litellm import LoopwrightLogger

url = sys.argv[1]
loop = Loopwright(feedback_url=url)
background = BackgroundLoopwright(loop)
logger = LoopwrightLogger(background)
litellm.telemetry = False
litellm.callbacks = [logger]
OPTIONS: dict[str, Any] = {
    "model": "openai/own-model",
    "messages": [{"role": "user", "content": "Capital?"}],
    "mock_response": "Wellington.",
    "user": "ann",
}


def recorded(response_id: str) -> dict[str, Any]:
    """Return a recorded response. litellm calls loggers after it has returned the answer."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert logger.flush()
        with urllib.request.urlopen(f"{url}/responses") as answer:
            found = {each["response_id"]: each for each in json.load(answer)}
        if response_id in found:
            return found[response_id]
        time.sleep(0.05)
    raise AssertionError(f"{response_id} was not recorded")


answer = litellm.completion(**OPTIONS)
found = recorded(answer.id)
assert [(m["role"], m["content"]) for m in found["messages"]] == [("user", "Capital?")], found
assert (found["choices"][0]["text"], found["version"]) == ("Wellington.", "own-model"), found
assert found["user_id"].startswith("u_"), found
assert loop.thumbs_up(answer.id, "ann").status == "accepted"
print("ok completion, and feedback on its id")

chunks = list(litellm.completion(**OPTIONS, stream=True))
assert recorded(chunks[0].id)["choices"][0]["text"] == "Wellington."
print("ok stream")


async def asynchronous() -> list[str]:
    whole = await litellm.acompletion(**OPTIONS)
    stream = await litellm.acompletion(**OPTIONS, stream=True)
    ids = [chunk.id async for chunk in stream]
    await asyncio.sleep(1)  # litellm logs in a task of this event loop
    return [whole.id, ids[0]]


for response_id in asyncio.run(asynchronous()):
    assert recorded(response_id)["choices"][0]["text"] == "Wellington."
print("ok asynchronous")

litellm.callbacks = [
    LoopwrightLogger(
        BackgroundLoopwright(Loopwright(feedback_url="http://127.0.0.1:9", retry=Retry(attempts=1)))
    )
]
assert litellm.completion(**OPTIONS).choices[0].message.content == "Wellington."
print("ok an outage fails no request")
