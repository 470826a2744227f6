"""Base URLs of the services: from an argument, else an environment variable, else the local stack's default."""

from __future__ import annotations

import os
from dataclasses import dataclass

from loopwright.wire import Service

FEEDBACK_VARIABLE = "LOOPWRIGHT_FEEDBACK_URL"
CONSOLE_VARIABLE = "LOOPWRIGHT_CONSOLE_URL"
INFERENCE_VARIABLE = "LOOPWRIGHT_INFERENCE_URL"
TRAINER_VARIABLE = "LOOPWRIGHT_TRAINER_URL"
API_KEY_VARIABLE = "LOOPWRIGHT_API_KEY"
DEFAULTS = {
    FEEDBACK_VARIABLE: "http://127.0.0.1:8001",
    CONSOLE_VARIABLE: "http://127.0.0.1:8080",
    INFERENCE_VARIABLE: "http://127.0.0.1:8000",
    TRAINER_VARIABLE: "http://127.0.0.1:8004",
}
"""Base URLs of the local stack, by environment variable."""
_VARIABLES: dict[Service, str] = {
    "feedback": FEEDBACK_VARIABLE,
    "console": CONSOLE_VARIABLE,
    "trainer": TRAINER_VARIABLE,
}


@dataclass(frozen=True, slots=True)
class BaseUrls:
    """Base URLs of the services, without a trailing slash."""

    feedback: str
    console: str
    inference: str
    trainer: str

    def of(self, service: Service) -> str:
        """Return the base URL of a service."""
        return {"feedback": self.feedback, "console": self.console, "trainer": self.trainer}[service]

    @staticmethod
    def variable(service: Service) -> str:
        """Return the name of the environment variable that sets the URL of a service."""
        return _VARIABLES[service]


def resolve_base_urls(
    feedback: str | None, console: str | None, inference: str | None, trainer: str | None
) -> BaseUrls:
    """Return the URL of each service: the argument, else its environment variable, else the local stack's default."""
    return BaseUrls(
        _resolve(feedback, FEEDBACK_VARIABLE),
        _resolve(console, CONSOLE_VARIABLE),
        _resolve(inference, INFERENCE_VARIABLE),
        _resolve(trainer, TRAINER_VARIABLE),
    )


def resolve_api_key(key: str | None) -> str | None:
    """Return the argument, else the value of `LOOPWRIGHT_API_KEY`, else None."""
    return key or os.environ.get(API_KEY_VARIABLE) or None


def _resolve(url: str | None, variable: str) -> str:
    return (url or os.environ.get(variable) or DEFAULTS[variable]).rstrip("/")
