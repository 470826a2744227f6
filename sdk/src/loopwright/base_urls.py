"""Where the services are: given, else from the environment, else the local stack's addresses."""

from __future__ import annotations

import os
from dataclasses import dataclass

from loopwright.endpoints import Service

FEEDBACK_VARIABLE = "LOOPWRIGHT_FEEDBACK_URL"
CONSOLE_VARIABLE = "LOOPWRIGHT_CONSOLE_URL"
INFERENCE_VARIABLE = "LOOPWRIGHT_INFERENCE_URL"
TRAINER_VARIABLE = "LOOPWRIGHT_TRAINER_URL"
ERASURE_TOKEN_VARIABLE = "LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN"  # noqa: S105 - the name of a variable
"""As at the door: what is shown to it to erase a user."""
_LOCAL = {
    FEEDBACK_VARIABLE: "http://127.0.0.1:8001",
    CONSOLE_VARIABLE: "http://127.0.0.1:8080",
    INFERENCE_VARIABLE: "http://127.0.0.1:8000",
    TRAINER_VARIABLE: "http://127.0.0.1:8004",
}
_VARIABLES: dict[Service, str] = {
    "feedback": FEEDBACK_VARIABLE,
    "console": CONSOLE_VARIABLE,
    "trainer": TRAINER_VARIABLE,
}


@dataclass(frozen=True, slots=True)
class Places:
    """Base addresses, without a slash at the end."""

    feedback: str
    console: str
    inference: str
    trainer: str

    def of(self, service: Service) -> str:
        """Base address of a service that calls go to."""
        return {"feedback": self.feedback, "console": self.console, "trainer": self.trainer}[service]

    @staticmethod
    def variable(service: Service) -> str:
        """The environment variable that sets it."""
        return _VARIABLES[service]


def find_erasure_token(given: str | None) -> str | None:
    """As given, or from its variable."""
    return given or os.environ.get(ERASURE_TOKEN_VARIABLE) or None


def find_places(
    feedback: str | None, console: str | None, inference: str | None, trainer: str | None = None
) -> Places:
    """Each address as given, from its variable, or the local stack's."""
    return Places(
        _place(feedback, FEEDBACK_VARIABLE),
        _place(console, CONSOLE_VARIABLE),
        _place(inference, INFERENCE_VARIABLE),
        _place(trainer, TRAINER_VARIABLE),
    )


def _place(given: str | None, variable: str) -> str:
    return (given or os.environ.get(variable) or _LOCAL[variable]).rstrip("/")
