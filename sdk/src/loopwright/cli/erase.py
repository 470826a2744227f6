"""`loopwright erase`: all that a user said and asked goes, and it can be followed."""

from __future__ import annotations

from typing import Annotated

import typer

from loopwright.cli.common import (
    AsJson,
    FeedbackUrl,
    LineName,
    at_terminal,
    connected,
    err,
    escaped,
    out,
    print_json,
)
from loopwright.models import Erasure

SHOWN = ("request_id", "subject", "deadline", "responses", "signals", "batches", "snapshots")


def erase(
    context: typer.Context,
    user: Annotated[
        str | None,
        typer.Argument(help="Your name of the user, as feedback was sent under.", show_default=False),
    ] = None,
    status: Annotated[
        str | None,
        typer.Option("--status", metavar="REQUEST_ID", help="Ask how far an erasure has come instead."),
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", help="Your own id of this erasure, to repeat it safely.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is done.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait.")] = 600.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    line: LineName = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Erase all that a user said and asked, from log, datasets and snapshots. It cannot be undone.

    The door's erasure token is taken from LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN. Versions that were trained from it are
    named; what they learned stays until they are replaced.

    Example: loopwright erase u-17 --wait
    """
    if (user is None) == (status is None):
        raise typer.BadParameter("give the user to erase, or --status with the id of an erasure")
    if status is not None and request_id is not None:
        raise typer.BadParameter(
            "--request-id belongs to an erasure that is asked for; --status names one that was"
        )
    if user is not None and not yes and not as_json and at_terminal():
        typer.confirm(f"Erase all that {user} said and asked?", abort=True, err=True)
    with connected(context, as_json, feedback_url=feedback_url) as loop:
        found = loop.erase(user, request_id, line=line) if user is not None else loop.erasure(status or "")
        if wait and found.status != "done":
            if not as_json:
                err.print(f"erasure {escaped(found.request_id)} is in the log; waiting until it is done")
            found = loop.wait_for_erasure(found.request_id, timeout=timeout)
    _tell(found, as_json)


def _tell(found: Erasure, as_json: bool) -> None:
    if as_json:
        print_json(found.model_dump(mode="json", exclude_none=True))
        return
    out.print(f"[bold]{escaped(found.status)}[/] {escaped(found.detail)}".rstrip())
    for name in SHOWN:
        told = getattr(found, name)
        if told is not None:
            out.print(f"  {name:<10} {escaped(str(told))}")
    for version in found.versions:
        out.print(f"  {'trained':<10} {escaped(version)}")
