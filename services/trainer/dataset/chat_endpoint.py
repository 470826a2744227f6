"""An OpenAI-compatible endpoint of another model, asked with an instruction and material.

Users' text leaves the deployment only through it: to the model that rewrites answers from comments, and to the judge
model of the gate, if an operator sets their URLs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx
from pydantic import SecretStr
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from services.trainer.core.chat import as_chat
from shared.errors import Rejected, Retryable

ATTEMPTS: Final = 3
Complete = Callable[[str, str], str]
"""(instruction, material) -> the model's reply. Raises `EndpointFailed`."""


class EndpointFailed(Rejected):
    """The endpoint gave no usable reply. The message says what it gave instead."""

    code = "endpoint_unanswered"


class EndpointBusy(Retryable):
    """The endpoint failed in a way that may pass."""

    code = "endpoint_busy"


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Where texts are sent, and how many per run at most."""

    url: str
    key: SecretStr | None
    timeout_s: float
    limit: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A `Complete` over HTTP. Decodes greedily, so that the same request most likely gets the same reply."""

    client: httpx.Client
    model: str
    wait_s: float = 1.0
    """Maximum wait before the first retry; it doubles with each one."""
    role: str = "reviser"
    """Who answers, in errors; also the name of its settings."""

    def __call__(self, instruction: str, material: str) -> str:
        """Return the reply to an instruction and its material, after up to `ATTEMPTS` attempts."""
        retrying = Retrying(
            retry=retry_if_exception_type(EndpointBusy),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=self.wait_s, max=10 * self.wait_s),
            reraise=True,
        )
        try:
            return retrying(self._request, instruction, material)
        except EndpointBusy as error:
            raise EndpointFailed(str(error)) from error

    def _request(self, instruction: str, material: str) -> str:
        messages = as_chat([("system", instruction), ("user", material)])
        try:
            reply = self.client.post(
                "chat/completions", json={"model": self.model, "messages": messages, "temperature": 0}
            )
        except httpx.TransportError as error:
            raise EndpointBusy(f"the {self.role} cannot be reached: {type(error).__name__}") from error
        if reply.status_code == httpx.codes.TOO_MANY_REQUESTS or reply.is_server_error:
            raise EndpointBusy(f"the {self.role} answered with status {reply.status_code}")
        if not reply.is_success:
            raise EndpointFailed(
                f"the {self.role} answered with status {reply.status_code}: check its URL, model and key "
                f"(LOOPWRIGHT_TRAINER_{self.role.upper()}_*)"
            )
        try:
            return str(reply.json()["choices"][0]["message"]["content"] or "").strip()
        except (ValueError, LookupError, TypeError) as error:
            raise EndpointFailed(f"the {self.role}'s reply is not a chat completion") from error


def open_client(config: EndpointConfig) -> httpx.Client:
    """Return a client of the endpoint. It follows no redirect: users' text is sent to the configured URL only."""
    return httpx.Client(
        base_url=config.url.rstrip("/") + "/",
        headers={} if config.key is None else {"Authorization": f"Bearer {config.key.get_secret_value()}"},
        timeout=config.timeout_s,
        follow_redirects=False,
    )
