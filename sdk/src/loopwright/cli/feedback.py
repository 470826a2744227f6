"""`loopwright send` and `loopwright receipt`."""

from __future__ import annotations

import sys
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer

from loopwright import endpoints
from loopwright.cli.common import AsJson, FeedbackUrl, LineName, connected, escaped, out, print_json
from loopwright.endpoints import Value

ResponseId = Annotated[str, typer.Argument(help="The chat completion's id.", show_default=False)]


class Said(StrEnum):
    """Kinds of feedback, as the command line takes them."""

    THUMBS = "thumbs"
    RATING = "rating"
    CORRECTION = "correction"
    COMMENT = "comment"
    PREFERENCE = "preference"
    RETRACT = "retract"


def send(
    context: typer.Context,
    response_id: ResponseId,
    kind: Annotated[Said, typer.Argument(show_default=False)],
    user: Annotated[str, typer.Option("--user", "-u", help="Who says it; pseudonymised at the door.")],
    value: Annotated[
        str | None,
        typer.Argument(
            help="up or down, 1 to 5, the right answer, the comment, the event id to retract; - reads stdin.",
            show_default=False,
        ),
    ] = None,
    over: Annotated[str | None, typer.Option(help="preference: the worse text.")] = None,
    under: Annotated[str | None, typer.Option(help="preference: the better text.")] = None,
    event_id: Annotated[
        str | None, typer.Option(help="Your own id of this event, to repeat it safely.")
    ] = None,
    choice: Annotated[int, typer.Option(min=0, help="Which of several answers.")] = 0,
    tag: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    occurred_at: Annotated[
        datetime | None,
        typer.Option(
            help="When it was said, if not now; local time.", formats=["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"]
        ),
    ] = None,
    line: LineName = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Send what a user said about one response.

    Example: loopwright send chatcmpl-7 correction "Wellington is the capital." --user u-17
    """
    said = meant(kind, value, over, under)
    with connected(context, as_json, feedback_url=feedback_url) as loop:
        accepted = loop.send(
            response_id,
            user,
            kind.value,
            said,
            event_id,
            choice=choice,
            tags=tag or (),
            occurred_at=occurred_at.astimezone() if occurred_at else None,
            line=line,
        )
    if as_json:
        print_json(accepted.model_dump(mode="json"))
        return
    before = " (it was sent before and counts once)" if accepted.status == "duplicate" else ""
    out.print(f"{accepted.status} [bold]{escaped(accepted.event_id)}[/]{before}")
    if accepted.hint:
        out.print(f"[yellow]{escaped(accepted.hint)}[/]")


def receipt(
    context: typer.Context,
    response_id: ResponseId,
    event_id: Annotated[
        str, typer.Argument(help="The event's id, as `send` printed it.", show_default=False)
    ],
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show what became of a feedback event, up to the version that serves.

    Example: loopwright receipt chatcmpl-7 0198c1d2-7e3f-7a04-9b1c-5d2e8f6a7b90
    """
    with connected(context, as_json, feedback_url=feedback_url) as loop:
        found = loop.receipt(response_id, event_id)
    if as_json:
        print_json(found.model_dump(mode="json", exclude_none=True))
        return
    out.print(f"[bold]{escaped(found.stage)}[/] {escaped(found.detail)}")
    for name in ("outcome", "batch_id", "run_id", "version", "verdict", "serving", "serving_version"):
        told = getattr(found, name)
        if told is not None:
            out.print(f"  {name:<15} {escaped(str(told))}")


def meant(kind: Said, value: str | None, over: str | None, under: str | None) -> Value:
    """The value as the door takes it. Raises BadParameter (exit status 2) for what cannot be meant."""
    if kind is Said.PREFERENCE:
        if value is not None:
            raise typer.BadParameter("a preference takes --over or --under instead of a value")
        try:
            return endpoints.preference(over, under)
        except ValueError:
            raise typer.BadParameter("a preference needs exactly one of --over and --under") from None
    if over is not None or under is not None:
        raise typer.BadParameter("--over and --under belong to a preference")
    if value is None:
        raise typer.BadParameter(f"a {kind.value} needs a value")
    text = sys.stdin.read().rstrip("\n") if value == "-" else value
    if kind is Said.THUMBS and text not in ("up", "down"):
        raise typer.BadParameter("thumbs are up or down")
    if kind is Said.RATING:
        if text not in ("1", "2", "3", "4", "5"):
            raise typer.BadParameter("a rating is 1, 2, 3, 4 or 5")
        return int(text)
    return text
