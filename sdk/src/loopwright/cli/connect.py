"""`loopwright connect`: keep feedback of chat applications in step."""

from __future__ import annotations

import hashlib
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.markup import escape

from loopwright.cli.common import (
    AsJson,
    FeedbackUrl,
    LineName,
    err,
    out,
    print_error,
    print_json,
)
from loopwright.cli.common import connect as open_client
from loopwright.connectors.openwebui import ExportUnavailable, OpenWebui, Sync, SyncReport
from loopwright.connectors.openwebui_state import open_sent_store
from loopwright.errors import LoopwrightError, Overloaded, Unavailable, Unreachable
from loopwright.imports.importer import RETRY

HELP: Final = "Fetch feedback from chat applications, and keep it in step."
KEY_VARIABLE: Final = "OPENWEBUI_API_KEY"
app = typer.Typer(help=HELP, no_args_is_help=True)


@app.callback(help=HELP)
def root() -> None:
    """Make `connect` a group of commands although it has only one."""


@app.command("openwebui")
def openwebui(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(envvar="OPENWEBUI_URL", help="Base URL of Open WebUI.", show_default=False)
    ],
    key: Annotated[
        str,
        typer.Option(
            envvar=KEY_VARIABLE, help="API key of an administrator of Open WebUI.", show_default=False
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Fetch once, and exit.")] = False,
    interval: Annotated[float, typer.Option(min=1.0, help="Seconds between two fetches.")] = 60.0,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only feedback on this model of Open WebUI. Can be repeated.", show_default="all"),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="File that remembers what was sent.", show_default="one per URL, in the user's settings"
        ),
    ] = None,
    line: LineName = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Send Open WebUI's thumbs and comments. Edits replace what was sent, and deletions retract it.

    Open WebUI must forward its ids to inference: ENABLE_FORWARD_USER_INFO_HEADERS=true.

    Example: loopwright connect openwebui --url http://localhost:3000 --key sk-... --model assistant
    """
    transport = context.obj if isinstance(context.obj, httpx.BaseTransport) else None
    with (
        _stopping() as stop,
        closing(OpenWebui(url, key, transport)) as webui,
        open_client(context, as_json, feedback_url=feedback_url, retry=RETRY) as loop,
        _open_state(state or _default_state(url)) as store,
    ):
        sync = Sync(webui, loop, store, line, frozenset(model or ()), stop.is_set)
        while not stop.is_set():
            try:
                _print(sync.run(), as_json)
            except LoopwrightError as error:
                # While it polls, an outage may end by itself.
                if once or not isinstance(error, TEMPORARY):
                    raise
                print_error(f"{error}. Trying again in {interval:g} s")
            if once:
                break
            stop.wait(interval)


TEMPORARY: Final = (ExportUnavailable, Overloaded, Unavailable, Unreachable)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set, so that what was sent is remembered before the command ends."""
    stop = threading.Event()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(*_: Any) -> None:
        stop.set()

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _open_state(path: Path) -> Iterator[Any]:
    try:
        with open_sent_store(path) as store:
            yield store
    except (OSError, sqlite3.Error) as error:
        raise typer.BadParameter(f"cannot use {path}: {error}", param_hint="--state") from None


def _default_state(url: str) -> Path:
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return Path(typer.get_app_dir("loopwright")) / "openwebui" / f"{name}.sqlite"


def _print(report: SyncReport, as_json: bool) -> None:
    if as_json:
        print_json(asdict(report))
        return
    for refusal in report.refusals:
        err.print(f"[red]refused[/] {escape(refusal)}")
    parts = [
        f"{report.objects} feedback objects",
        f"{report.sent} events sent",
        f"{report.retracted} retracted",
    ]
    parts += [f"{report.other_models} on other models"] if report.other_models else []
    parts += [f"{report.refused} refused"] if report.refused else []
    out.print(f"{datetime.now().astimezone():%H:%M:%S} {', '.join(parts)}")
