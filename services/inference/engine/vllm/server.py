"""HTTP calls to one vLLM server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from services.inference.engine.vllm.addresses import ServerAddress
from services.inference.engine.vllm.completions_api import (
    COMPLETIONS,
    ServedModel,
    error_message,
    error_param,
    parse_models,
)
from shared.errors import LoopwrightError, Retryable

CONNECT_S = 5.0
POLL_S = 10.0
"""Limit of a health check."""
LOAD_S = 180.0
"""Limit of loading an adapter: a server reads it from the shared folder and copies it to the GPU."""
SMOKE_TEST_S = 120.0
BUFFER_BYTES = 1 << 20
"""At most half of a stream's longest event."""
EVENT, END_OF_STREAM = b"data:", b"[DONE]"


class ServerUnreachable(Retryable):
    """The server did not answer, or broke off."""

    code = "engine_unreachable"


class ServerRefused(LoopwrightError):
    """The server answered with an error.

    `status` is the HTTP status, 0 for an error within a stream. `param` is the field of the request at fault, if known.
    """

    code = "engine_refused"

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        self.status = status
        self.param = param
        super().__init__(message)


def open_session(api_key: str | None) -> aiohttp.ClientSession:
    """Return the HTTP client for all servers. Call it in the event loop that uses it."""
    return aiohttp.ClientSession(
        # vLLM closes idle connections after five seconds. A shorter time here avoids sending into one that closes.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0),
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        read_bufsize=BUFFER_BYTES,
        json_serialize=lambda value: orjson.dumps(value).decode(),
        trust_env=False,
    )


class VllmServer:
    """One vLLM server.

    Every call raises `ServerUnreachable` if the connection fails or a time limit passes, and `ServerRefused` if the
    server answers with an error.

    Args:
        session: The HTTP client.
        address: Where the server is.
        stall_s: How long a stream may be silent.

    """

    def __init__(self, session: aiohttp.ClientSession, address: ServerAddress, stall_s: float) -> None:
        self._session = session
        self._address = address
        self._stall_s = stall_s
        self.url = address.url

    async def health(self) -> None:
        """Require that the server's engine is alive."""
        await self._call("GET", "/health", None, POLL_S)

    async def models(self) -> list[ServedModel]:
        """Return the base and the loaded adapters."""
        value = await self._call("GET", "/v1/models", None, POLL_S)
        try:
            return parse_models(value)
        except (KeyError, TypeError, AttributeError) as error:
            raise ServerRefused(200, f"{self.url}/v1/models is not a list of models: {error!r}") from error

    async def version(self) -> str:
        """Return the release of vLLM, or an empty string."""
        value = await self._call("GET", "/version", None, POLL_S)
        return str(value.get("version", "")) if isinstance(value, dict) else ""

    async def metrics(self) -> str:
        """Return the server's metrics as text."""
        return str(await self._call("GET", "/metrics", None, POLL_S))

    async def load_adapter(self, name: str, path: str) -> None:
        """Load an adapter from a folder that the server can read. The name must not be loaded yet."""
        await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, LOAD_S)

    async def unload_adapter(self, name: str) -> None:
        """Let the server forget an adapter's name."""
        await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, POLL_S)

    async def complete(self, body: Mapping[str, Any]) -> Any:
        """Return a completion that is not streamed."""
        return await self._call("POST", COMPLETIONS, body, SMOKE_TEST_S)

    async def count_tokens(self, body: Mapping[str, Any]) -> int:
        """Return the length of the prompt that the server would build for a conversation, in tokens."""
        value = await self._call("POST", "/tokenize", body, POLL_S)
        try:
            return int(value["count"])
        except (KeyError, TypeError, ValueError) as error:
            raise ServerRefused(200, f"{self.url}/tokenize did not count tokens: {error!r}") from error

    @asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, Any]
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Start a streamed answer; the context's value yields its events.

        The server has accepted the request when the context is entered. Leaving it early cancels the request.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._stall_s)
        try:
            async with self._request("POST", path, body, timeout) as response:
                await self._raise_if_refused(response)
                yield self._events(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a stream. Lines end with LF only: JSON may contain other line separators."""
        try:
            async for line in response.content:
                data = line[len(EVENT) :].strip() if line.startswith(EVENT) else b""
                if data == END_OF_STREAM:
                    return
                if data:
                    yield self._event(data)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error
        except ValueError as error:  # aiohttp: a line is too long
            raise ServerRefused(0, f"{self.url} sent an event that is too long: {error}") from error

    def _event(self, data: bytes) -> dict[str, Any]:
        try:
            event: dict[str, Any] = orjson.loads(data)
            error = event.get("error")
        except (orjson.JSONDecodeError, AttributeError) as invalid:
            raise ServerRefused(0, f"{self.url} sent an event that is not a JSON object") from invalid
        if error:
            raise ServerRefused(0, error_message(event, "the server reports an error"))
        return event

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Any:
        """Return the answer: its JSON value, or its text if it is no JSON."""
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        try:
            async with self._request(method, path, body, timeout) as response:
                await self._raise_if_refused(response)
                return _decode(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: aiohttp.ClientTimeout
    ) -> Any:
        return self._session.request(
            method,
            self.url + path,
            json=body,
            timeout=timeout,
            headers={"Host": f"{self._address.host}:{self._address.port}"},
            allow_redirects=False,
            server_hostname=self._address.host if self._address.is_tls else None,
        )

    async def _raise_if_refused(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            answer = _decode(await response.read())
            raise ServerRefused(
                response.status,
                error_message(answer, f"HTTP status {response.status}"),
                error_param(answer),
            )

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or repr(error)
        return ServerUnreachable(f"the vLLM server {self.url} cannot be reached: {reason}")


def _decode(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return content.decode("utf-8", "replace")
