"""What all commands share: the root, the options, how an error becomes one line and an exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import httpx
import typer
from rich.console import Console

from loopwright.base_urls import CONSOLE_VARIABLE, FEEDBACK_VARIABLE, TRAINER_VARIABLE
from loopwright.client import Loopwright
from loopwright.errors import LoopwrightError, StillRunning, Unavailable, Unreachable
from loopwright.retry import Retry

REFUSED = 1
NO_ANSWER = 3
RETRY = Retry(attempts=4)
"""Somebody is watching: give up after about two seconds."""

app = typer.Typer(
    name="loopwright",
    help="Send users' feedback to Loopwright, follow what became of it, operate the loop.",
    epilog="Exit status: 0 done, 1 refused by the service, 2 wrong usage, 3 no service answered.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(soft_wrap=True, highlight=False)
err = Console(soft_wrap=True, highlight=False, stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
FeedbackUrl = Annotated[
    str | None,
    typer.Option(
        "--feedback-url",
        envvar=FEEDBACK_VARIABLE,
        help="The feedback door.",
        show_default="http://127.0.0.1:8001",
    ),
]
ConsoleUrl = Annotated[
    str | None,
    typer.Option(
        "--console-url", envvar=CONSOLE_VARIABLE, help="The console.", show_default="http://127.0.0.1:8080"
    ),
]
TrainerUrl = Annotated[
    str | None,
    typer.Option(
        "--trainer-url", envvar=TRAINER_VARIABLE, help="The trainer.", show_default="http://127.0.0.1:8004"
    ),
]
LineName = Annotated[
    str | None,
    typer.Option(
        "--line", envvar="LOOPWRIGHT_LINE", help="The line meant.", show_default="the service's own"
    ),
]


@app.callback()
def root() -> None:
    """Send users' feedback to Loopwright, follow what became of it, operate the loop."""


@contextmanager
def connected(
    context: typer.Context,
    as_json: bool,
    *,
    feedback_url: str | None = None,
    console_url: str | None = None,
    trainer_url: str | None = None,
    retry: Retry | None = None,
) -> Iterator[Loopwright]:
    """A client for one command; its errors end the command with one line and their exit status.

    The context's `obj` may hold the transport to use instead of the network.
    """
    transport = context.obj if isinstance(context.obj, httpx.BaseTransport) else None
    try:
        with Loopwright(
            feedback_url=feedback_url,
            console_url=console_url,
            trainer_url=trainer_url,
            retry=retry or RETRY,
            transport=transport,
        ) as loop:
            yield loop
    except LoopwrightError as error:
        if as_json:
            print_json({"error": {"code": error.code, "message": str(error)}}, err)
        else:
            err.print(f"[red]loopwright:[/] {escaped(str(error))}")
        raise typer.Exit(exit_status(error)) from None


def exit_status(error: LoopwrightError) -> int:
    """1 for what was refused, 3 where no useful answer came."""
    return NO_ANSWER if isinstance(error, Unreachable | Unavailable | StillRunning) else REFUSED


def at_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty()


def refuse_unasked() -> None:
    """Before a question: wrong usage where there is nobody to answer it."""
    if not at_terminal():
        raise typer.BadParameter("nobody can be asked here: give --yes, or --dry-run to see what it would do")


def print_json(value: object, console: Console = out) -> None:
    """One line of JSON, as it is."""
    console.print(json.dumps(value, ensure_ascii=False), markup=False)


def escaped(text: str) -> str:
    """Text that holds no markup, whatever a user wrote."""
    return text.replace("[", r"\[")
