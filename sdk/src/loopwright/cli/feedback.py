"""`loopwright send` and `loopwright receipt`: send feedback, and follow its outcome."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated

import typer
from rich.markup import escape

from loopwright.cli.common import AsJson, FeedbackUrl, LineName, connect, out, print_json, print_model
from loopwright.feedback_kinds import VALUES, FeedbackKind
from loopwright.wire import FeedbackValue, preference_value

ResponseId = Annotated[str, typer.Argument(help="The chat completion's id.", show_default=False)]


RECEIPT_FIELDS = (
    "outcome", "reason", "remedy", "batch_id", "run_id", "version", "verdict", "serving", "serving_version"
)  # fmt: skip
VALUE_HELP = "; ".join(f"{kind}: {value.help}" for kind, value in VALUES.items() if not value.by_options)


def send(
    context: typer.Context,
    response_id: ResponseId,
    kind: Annotated[FeedbackKind, typer.Argument(help="Kind of feedback.", show_default=False)],
    user: Annotated[
        str, typer.Option("--user", "-u", help="Your id of the user. Only a pseudonym is stored.")
    ],
    value: Annotated[
        str | None,
        typer.Argument(
            help=f"{VALUE_HELP}. Use - to read stdin.",
            show_default=False,
        ),
    ] = None,
    over: Annotated[str | None, typer.Option(help="For preference: the text of the worse answer.")] = None,
    under: Annotated[str | None, typer.Option(help="For preference: the text of the better answer.")] = None,
    event_id: Annotated[
        str | None,
        typer.Option(help="Your id of the event. Repeating the command with it has no further effect."),
    ] = None,
    choice: Annotated[int, typer.Option(min=0, help="Index of the choice, if there are several.")] = 0,
    tag: Annotated[
        list[str] | None, typer.Option(help="Label to store with the event. Can be repeated.")
    ] = None,
    occurred_at: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            help="When the user gave the feedback, in local time: 2026-03-01T12:00:00 or 2026-03-01.",
            formats=["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"],
            show_default="now",
        ),
    ] = None,
    line: LineName = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Send one user's feedback on a response.

    Example: loopwright send chatcmpl-7 correction "Wellington is the capital." --user u-17
    """
    content = parse_value(kind, value, over, under)
    with connect(context, as_json, feedback_url=feedback_url) as loop:
        accepted = loop.send(
            response_id,
            user,
            kind,
            content,
            event_id,
            choice=choice,
            tags=tag or (),
            occurred_at=occurred_at.astimezone() if occurred_at else None,
            line=line,
        )
    if as_json:
        print_json(accepted.model_dump(mode="json"))
        return
    note = " (sent before, counts once)" if accepted.status == "duplicate" else ""
    out.print(f"{accepted.status} [bold]{escape(accepted.event_id)}[/]{note}")
    if accepted.hint:
        out.print(f"[yellow]{escape(accepted.hint)}[/]")


def receipt(
    context: typer.Context,
    response_id: ResponseId,
    event_id: Annotated[
        str, typer.Argument(help="The event's id, as printed by `loopwright send`.", show_default=False)
    ],
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show the outcome of a feedback event, followed to the version that serves.

    Example: loopwright receipt chatcmpl-7 0198c1d2-7e3f-7a04-9b1c-5d2e8f6a7b90
    """
    with connect(context, as_json, feedback_url=feedback_url) as loop:
        found = loop.receipt(response_id, event_id)
    if as_json:
        print_model(found)
        return
    out.print(f"[bold]{escape(found.stage)}[/] {escape(found.detail)}")
    for name in RECEIPT_FIELDS:
        value = getattr(found, name)
        if value is not None:
            out.print(f"  {name:<15} {escape(str(value))}")


def parse_value(kind: FeedbackKind, value: str | None, over: str | None, under: str | None) -> FeedbackValue:
    """Return the value of the event.

    Raises:
        typer.BadParameter: The value is missing or does not fit the kind.

    """
    if VALUES[kind].by_options:
        if value is not None:
            raise typer.BadParameter(f"a {kind} has no value: use --over or --under")
        try:
            return preference_value(over, under)
        except ValueError:
            raise typer.BadParameter(f"a {kind} needs exactly one of --over and --under") from None
    if over is not None or under is not None:
        raise typer.BadParameter("--over and --under are only for the kind preference")
    if value is None:
        raise typer.BadParameter(f"{kind} needs a value: see loopwright send --help")
    text = sys.stdin.read().rstrip("\n") if value == "-" else value
    choices = VALUES[kind].choices
    if not choices:
        return text
    by_text = {str(choice): choice for choice in choices}
    if text not in by_text:
        raise typer.BadParameter(f"{text!r} is not a {kind} value: expected {VALUES[kind].help}")
    return by_text[text]
