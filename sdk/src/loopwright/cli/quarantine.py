"""`loopwright quarantine`: events that a check keeps out of training, and their release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from loopwright.cli.common import (
    MAX_IDS_PER_COMMAND,
    AsJson,
    AssumeYes,
    CommandId,
    ConsoleUrl,
    LineName,
    connect,
    out,
    print_json,
    require_terminal,
)
from loopwright.cli.operator import ResultTimeout, Wait, print_result
from loopwright.client import Loopwright
from loopwright.errors import LoopwrightError
from loopwright.models import QuarantinedEvent

app = typer.Typer(help="List events that are kept out of training, and release them.", no_args_is_help=True)

ReasonPrefix = Annotated[
    str | None,
    typer.Option("--reason", help="Only events whose reason starts with this text.", show_default=False),
]


@app.command("list")
def list_events(
    context: typer.Context,
    reason: ReasonPrefix = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of events.")] = 50,
    line: LineName = None,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """List quarantined events that can be released: ids and reasons, no text.

    Example: loopwright quarantine list --reason "personal data"
    """
    with connect(context, as_json, console_url=console_url) as loop:
        events = _find(loop, line, reason)
    if as_json:
        print_json([event.model_dump(mode="json") for event in events[:limit]])
        return
    if not events:
        out.print("no quarantined events that can be released")
        return
    table = Table("response", "event", "reason", box=None)
    for event in events[:limit]:
        table.add_row(escape(event.response_id), escape(event.event_id), escape(event.reason))
    out.print(table)
    out.print(f"{min(limit, len(events))} of {len(events)}: {escape(_count_by_reason(events))}")


@app.command("release")
def release(
    context: typer.Context,
    response_ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of the responses whose events are released.", show_default=False),
    ] = None,
    reason: ReasonPrefix = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be released, and why it is quarantined.")
    ] = False,
    yes: AssumeYes = False,
    wait: Wait = True,
    timeout: ResultTimeout = 120.0,
    line: LineName = None,
    command_id: CommandId = None,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Release events from quarantine, so that they can train from the next run on.

    Name the responses, or select events with --reason. All quarantined events of a response are released, so check its
    text in your application first.

    Example: loopwright quarantine release chatcmpl-123 chatcmpl-124
    """
    if bool(response_ids) == (reason is not None):
        raise typer.BadParameter("either response ids or --reason must be given")
    if len(response_ids or ()) > MAX_IDS_PER_COMMAND:
        raise typer.BadParameter(f"too many responses: at most {MAX_IDS_PER_COMMAND} per command")
    with connect(context, as_json, console_url=console_url) as loop:
        # Ids named with --yes are released even if the list of quarantined events is not available.
        skip_lookup = bool(response_ids) and yes and not dry_run
        events = [] if skip_lookup else _find(loop, line, reason)
        if response_ids:
            events = [event for event in events if event.response_id in set(response_ids)]
        ids = list(dict.fromkeys(response_ids or (event.response_id for event in events)))
        ids = ids[:MAX_IDS_PER_COMMAND]
        if dry_run or not ids:
            _print_plan(events, as_json)
            return
        if not yes:
            _confirm(events, ids)
        command = loop.release(ids, line=line, command_id=command_id)
        print_result(loop, command, "release", timeout if wait else None, as_json)


def _find(loop: Loopwright, line: str | None, reason: str | None) -> list[QuarantinedEvent]:
    quarantine = loop.quarantine(line)
    if quarantine.total is None:
        raise LoopwrightError(
            "the quarantined events are not known: the trainer has not reported them yet. It reports every few "
            "seconds; check that it is running."
        )
    return [event for event in quarantine.held if event.reason.startswith(reason or "")]


def _print_plan(events: Sequence[QuarantinedEvent], as_json: bool) -> None:
    if as_json:
        print_json({"would_release": [event.model_dump(mode="json") for event in events]})
    elif events:
        out.print(f"would be released: {escape(_count_by_reason(events))}")
    else:
        out.print("nothing to release")


def _confirm(events: Sequence[QuarantinedEvent], response_ids: Sequence[str]) -> None:
    """Ask for confirmation, and end the command without it."""
    require_terminal()
    reasons = _count_by_reason(events) or "no quarantined events found"
    typer.confirm(
        f"Release the events of {_plural(len(response_ids), 'response')} ({reasons})?", abort=True, err=True
    )


def _count_by_reason(events: Sequence[QuarantinedEvent]) -> str:
    counts = Counter(event.reason for event in events)
    return ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items()))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
