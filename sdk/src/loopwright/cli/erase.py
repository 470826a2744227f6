"""`loopwright erase`: erase a user's data, and follow the erasure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from loopwright.cli.common import (
    AsJson,
    AssumeYes,
    FeedbackUrl,
    LineName,
    connect,
    err,
    is_interactive,
    out,
    print_model,
)
from loopwright.models import Erasure

PRINTED_FIELDS = (
    "request_id",
    "subject",
    "issued_by",
    "deadline",
    "responses",
    "signals",
    "batches",
    "snapshots",
)


def erase(
    context: typer.Context,
    user: Annotated[
        str | None,
        typer.Argument(help="Your id of the user, as in the feedback you sent.", show_default=False),
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", metavar="REQUEST_ID", help="Show the progress of an earlier erasure instead."
        ),
    ] = None,
    request_id: Annotated[
        str | None,
        typer.Option(
            "--request-id",
            help="Your id of this erasure. Repeating the command with it has no further effect.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the erasure is done.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Longest wait with --wait, in seconds.")
    ] = 600.0,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate",
            metavar="FILE",
            help="Write the signed certificate of the erasure to this file. Needs --wait, or an erasure that is done.",
        ),
    ] = None,
    yes: AssumeYes = False,
    line: LineName = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Erase all data of a user from the log, the datasets and the snapshots. This cannot be undone.

    Needs an API key with the scope `erase` in LOOPWRIGHT_API_KEY. Versions that were trained on the data are listed and
    remain unchanged.

    Example: loopwright erase u-17 --wait
    """
    if (user is None) == (status is None):
        raise typer.BadParameter(
            "either the user to erase, or --status with the id of an earlier erasure must be given"
        )
    if status is not None and request_id is not None:
        raise typer.BadParameter("--request-id is for a new erasure and cannot be combined with --status")
    if user is not None and not yes and not as_json and is_interactive():
        typer.confirm(f"Erase all data of {user}?", abort=True, err=True)
    with connect(context, as_json, feedback_url=feedback_url) as loop:
        erasure = loop.erase(user, request_id, line=line) if user is not None else loop.erasure(status or "")
        if wait and erasure.status != "done":
            if not as_json:
                err.print(f"erasure {escape(erasure.request_id)} is accepted; waiting until it is done")
            erasure = loop.wait_for_erasure(erasure.request_id, timeout=timeout)
        if certificate is not None:
            signed = loop.certificate(erasure.request_id)
            certificate.write_text(json.dumps(signed.model_dump(mode="json"), indent=2) + "\n")
    if as_json:
        print_model(erasure)
    else:
        _print_erasure(erasure)


def _print_erasure(erasure: Erasure) -> None:
    out.print(f"[bold]{escape(erasure.status)}[/] {escape(erasure.detail)}".rstrip())
    for name in PRINTED_FIELDS:
        value = getattr(erasure, name)
        if value is not None:
            out.print(f"  {name:<10} {escape(str(value))}")
    for version in erasure.versions:
        out.print(f"  {'trained':<10} {escape(version)}")
