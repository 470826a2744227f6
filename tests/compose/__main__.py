"""`make compose-test`: build docker-compose.yml, run it, and take one correction through it.

Needs Docker with Compose and Python's standard library. Two deployments, one after the other: the first prepares the
default model, the second uses a model folder. In each, everything must become healthy, inference must
answer a chat, and a correction of that answer must reach a training batch. Afterwards everything except the
build cache is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.compose.engine import EngineMissingError, docker_engine
from tests.compose.progress import report
from tests.compose.stack import POLL_SECONDS, Stack, StackFailedError

HEALTHY_SECONDS = 420
RECEIPT_SECONDS = 180
REQUEST_SECONDS = 120
DEFAULT_MODEL = "/var/lib/loopwright/models/smollm2-135m-instruct"
REMEDY = (
    "Start Docker with Compose 2.24 or newer, so that `docker info` and `docker compose version` work, or name a\n"
    "script that starts an engine: make compose-test ENGINE_TOOL=/path/to/script"
)


def run_cases(engine: Mapping[str, str]) -> None:
    """Run both deployments. Raises `StackFailedError`."""
    with tempfile.TemporaryDirectory(prefix="loopwright-compose-") as temporary:
        folder = Path(temporary)
        models = folder / "models"
        models.mkdir()
        report(
            f"PyTorch: {os.environ.get('TORCH_BACKEND') or 'the default build (TORCH_BACKEND is not set)'}"
        )

        first = Stack("default", engine, folder / "first", {})
        with first.removed_afterwards():
            run_case(first)
            first.compose("cp", f"inference:{DEFAULT_MODEL}", str(models / "mine"))
        # The containers run as another user, who must be able to read the folder.
        subprocess.run(["chmod", "-R", "a+rX", str(models)], check=True)

        settings = {"LOOPWRIGHT_MODELS_DIR": str(models), "LOOPWRIGHT_BASE_MODEL": "/models/mine"}
        second = Stack("folder", engine, folder / "second", settings)
        with second.removed_afterwards():
            run_case(second)


def run_case(stack: Stack) -> None:
    """Build and start one deployment, ask, correct, and wait until the correction is in a batch."""
    began = time.monotonic()
    report(f"{stack.project}: docker compose build")
    stack.compose("build", "--quiet")
    report(f"{stack.project}: docker compose up -d")
    stack.start(HEALTHY_SECONDS)
    states = ", ".join(f"{name} {state}" for name, state in sorted(stack.states().items()))
    report(f"{stack.project}: {states}")
    report(f"{stack.project}: model job: {stack.last_line('model')}")
    response_id = ask(stack)
    event_id = correct(stack, response_id)
    receipt = wait_for_batch(stack, response_id, event_id)
    report(f"{stack.project}: receipt: {receipt['outcome']}. {receipt['detail']}")
    report(f"{stack.project}: PASSED in {time.monotonic() - began:.0f} s")


def ask(stack: Stack) -> str:
    """Send one chat completion to inference; return the response's id."""
    question = {"role": "user", "content": "Which city is the capital of France?"}
    body = {"model": "assistant", "user": "ann", "messages": [question], "max_tokens": 24, "temperature": 0}
    answer = call(stack, "inference", "/v1/chat/completions", body)
    text = answer["choices"][0]["message"]["content"]
    report(f"{stack.project}: {answer['model']} answered {text!r} as {answer['id']}")
    if not text:
        raise StackFailedError("inference gave an empty answer", ["inference"])
    return str(answer["id"])


def correct(stack: Stack, response_id: str) -> str:
    """Send one correction of that response to feedback; return the event's id."""
    body = {"response_id": response_id, "user_id": "ann", "kind": "correction", "value": "Paris."}
    sent = call(stack, "feedback", "/v1/feedback", body, expected=202)
    report(f"{stack.project}: correction accepted as {sent['event_id']}")
    return str(sent["event_id"])


def wait_for_batch(stack: Stack, response_id: str, event_id: str) -> dict[str, Any]:
    """Poll the event's receipt until it is in a batch: a quiet partition cuts its batch after 30 seconds."""
    deadline = time.monotonic() + RECEIPT_SECONDS
    while True:
        receipt = call(stack, "feedback", f"/v1/feedback/{response_id}/{event_id}")
        if receipt["outcome"] == "batched":
            return receipt
        if receipt["outcome"] != "pending" or time.monotonic() > deadline:
            raise StackFailedError(f"the correction was not batched: {receipt}", ["feedback", "processor"])
        time.sleep(POLL_SECONDS)


def call(
    stack: Stack, service: str, path: str, body: Mapping[str, Any] | None = None, expected: int = 200
) -> dict[str, Any]:
    """Send a request (POST if there is a body) and return the JSON answer. Raises `StackFailedError`."""
    url = f"http://127.0.0.1:{stack.ports[service]}{path}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    # Without the machine's proxy: the ports are on the loopback interface.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=REQUEST_SECONDS) as response:
            status, answer = response.status, json.load(response)
    except urllib.error.HTTPError as error:
        status, answer = error.code, error.read().decode(errors="replace")
    except (OSError, ValueError) as error:
        raise StackFailedError(f"{service}{path} did not answer: {error}", [service]) from error
    if status != expected:
        raise StackFailedError(
            f"{service}{path} answered {status} instead of {expected}: {answer}", [service]
        )
    return dict(answer)


def interrupt(*_: object) -> None:
    """Handle SIGTERM like Ctrl-C: everything is removed."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the test; return the exit status."""
    parser = argparse.ArgumentParser(prog="make compose-test", description="Test docker-compose.yml.")
    parser.add_argument("--engine-tool", type=Path, required=True, help="script that starts a Docker engine")
    parser.add_argument(
        "--allow-missing-engine",
        action="store_true",
        help="exit with 0 where no Docker engine can be started",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with docker_engine(options.engine_tool) as engine:
            run_cases(engine)
    except EngineMissingError as error:
        verdict = "SKIPPED" if options.allow_missing_engine else "FAILED"
        lines = [
            f"compose-test {verdict}: no Docker engine, so the containers were NOT tested.",
            str(error),
            REMEDY,
        ]
        print("\n" + "\n".join(["=" * 100, *lines, "=" * 100]), file=sys.stderr, flush=True)
        return 0 if options.allow_missing_engine else 1
    except (StackFailedError, subprocess.CalledProcessError) as error:
        report(f"compose-test FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        report("compose-test interrupted; everything that it started is removed")
        return 130
    report("compose-test PASSED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
