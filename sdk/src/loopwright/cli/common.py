"""Shared by all commands: the root command, common options, printing, and exit statuses of errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated

import httpx
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from loopwright.base_urls import CONSOLE_VARIABLE, DEFAULTS, FEEDBACK_VARIABLE, TRAINER_VARIABLE
from loopwright.client import Loopwright
from loopwright.errors import LoopwrightError, StillRunning, Unavailable, Unreachable
from loopwright.retry import Retry

EXIT_REFUSED = 1
EXIT_NO_RESULT = 3
MAX_IDS_PER_COMMAND = 1_000
"""Most positions or response ids that one command may name."""
RETRY = Retry(attempts=4)
"""A person is waiting, so give up after about two seconds."""

HELP = "Send users' feedback to Loopwright, follow its outcome, and operate the loop."
app = typer.Typer(
    name="loopwright",
    help=HELP,
    epilog=(
        "Exit status: 0 success; 1 refused or failed; 2 usage error; 3 the service is not reachable, is not available, "
        "or did not finish in time."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(soft_wrap=True, highlight=False, emoji=False, stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
AssumeYes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
FeedbackUrl = Annotated[
    str | None,
    typer.Option(
        "--feedback-url",
        envvar=FEEDBACK_VARIABLE,
        help="Base URL of the feedback service.",
        show_default=DEFAULTS[FEEDBACK_VARIABLE],
    ),
]
ConsoleUrl = Annotated[
    str | None,
    typer.Option(
        "--console-url",
        envvar=CONSOLE_VARIABLE,
        help="Base URL of the console.",
        show_default=DEFAULTS[CONSOLE_VARIABLE],
    ),
]
TrainerUrl = Annotated[
    str | None,
    typer.Option(
        "--trainer-url",
        envvar=TRAINER_VARIABLE,
        help="Base URL of the trainer.",
        show_default=DEFAULTS[TRAINER_VARIABLE],
    ),
]
CommandId = Annotated[
    str | None,
    typer.Option(
        "--command-id",
        metavar="ID",
        help="Send an earlier command again under its id: it is executed once.",
        show_default="a new id",
    ),
]
LineName = Annotated[
    str | None,
    typer.Option(
        "--line", envvar="LOOPWRIGHT_LINE", help="Name of the line.", show_default="the service's own line"
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"loopwright {version('loopwright')}")
        raise typer.Exit


@app.callback(help=HELP)
def root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Make `loopwright` a group of commands."""


@contextmanager
def connect(
    context: typer.Context,
    as_json: bool,
    *,
    feedback_url: str | None = None,
    console_url: str | None = None,
    trainer_url: str | None = None,
    retry: Retry | None = None,
) -> Iterator[Loopwright]:
    """Open a client for one command. An error of the client ends the command with one line and its exit status.

    If `context.obj` is an HTTP transport, the client uses it instead of the network.
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
            command = {"command_id": error.command_id} if error.command_id else {}
            print_json({"error": {"code": error.code, "message": str(error)} | command}, err)
        else:
            print_error(str(error))
            if error.command_id and isinstance(error, Unreachable | Unavailable):
                err.print(f"To send the same command again: add --command-id {escape(error.command_id)}")
        raise typer.Exit(exit_status(error)) from None


def exit_status(error: LoopwrightError) -> int:
    """Return the exit status for an error of the client."""
    return EXIT_NO_RESULT if isinstance(error, Unreachable | Unavailable | StillRunning) else EXIT_REFUSED


def is_interactive() -> bool:
    """Return whether stdin is a terminal, so that a question can be answered."""
    return sys.stdin.isatty()


def require_terminal() -> None:
    """Raise a usage error if a question could not be answered."""
    if not is_interactive():
        raise typer.BadParameter(
            "stdin is not a terminal, so confirmation is not possible: add --yes, or --dry-run to see the effect"
        )


def print_json(value: object, console: Console = out) -> None:
    """Print a value as one line of JSON."""
    console.print(json.dumps(value, ensure_ascii=False), markup=False)


def print_model(model: BaseModel) -> None:
    """Print a model as one line of JSON, without the fields that are None."""
    print_json(model.model_dump(mode="json", exclude_none=True))


def print_error(message: str) -> None:
    """Print an error message on stderr."""
    err.print(f"[red]loopwright:[/] {escape(message)}")
