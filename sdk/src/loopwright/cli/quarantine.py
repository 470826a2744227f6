"""`loopwright quarantine`: what is held back from training, why, and the way to let it train after all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from loopwright.cli.common import (
    AsJson,
    ConsoleUrl,
    LineName,
    connected,
    escaped,
    out,
    print_json,
    refuse_unasked,
)
from loopwright.cli.operator import Patience, follow
from loopwright.client import Loopwright
from loopwright.errors import LoopwrightError
from loopwright.models import Held

AT_ONCE = 1_000
"""What one command may name."""

quarantine = typer.Typer(help="See what is held back from training, and release it.", no_args_is_help=True)

Reason = Annotated[
    str | None, typer.Option("--reason", help="Whose reason begins so, such as `personal data`.")
]


@quarantine.command("list")
def listed(
    context: typer.Context,
    reason: Reason = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    line: LineName = None,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """List what is held and can be released, with the reason of each; never a text.

    Example: loopwright quarantine list --reason "personal data"
    """
    with connected(context, as_json, console_url=console_url) as loop:
        found = _found(loop, line, reason)
    if as_json:
        print_json([one.model_dump(mode="json") for one in found[:limit]])
        return
    if not found:
        out.print("nothing is held that could be released")
        return
    table = Table("response", "event", "reason", box=None)
    for one in found[:limit]:
        table.add_row(escaped(one.response_id), escaped(one.event_id), escaped(one.reason))
    out.print(table)
    out.print(f"{min(limit, len(found))} of {len(found)}: {_counted(found)}")


@quarantine.command("release")
def release(
    context: typer.Context,
    response_ids: Annotated[
        list[str] | None, typer.Argument(help="What is held of these responses.", show_default=False)
    ] = None,
    reason: Reason = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be released, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for what comes of it.")] = True,
    timeout: Patience = 120.0,
    line: LineName = None,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Let examples train after all, from the next run on: by response, or by the reason that holds them.

    All is released that is held of a response and can be: look at the answers first, where your application shows them.

    Example: loopwright quarantine release chatcmpl-123 chatcmpl-124
    """
    if bool(response_ids) == (reason is not None):
        raise typer.BadParameter("say which: responses, or --reason")
    if len(response_ids or ()) > AT_ONCE:
        raise typer.BadParameter(f"at most {AT_ONCE} at once")
    with connected(context, as_json, console_url=console_url) as loop:
        blind = bool(response_ids) and yes and not dry_run
        found = [] if blind else _found(loop, line, reason)
        if response_ids:
            found = [one for one in found if one.response_id in set(response_ids)]
        named = list(dict.fromkeys(response_ids or (one.response_id for one in found)))[:AT_ONCE]
        if dry_run or not named:
            _tell_plan(found, as_json)
            return
        if not yes:
            _ask(found, named)
        follow(loop, loop.release(named, line=line), "release", timeout if wait else None, as_json)


def _found(loop: Loopwright, line: str | None, reason: str | None) -> list[Held]:
    told = loop.quarantine(line)
    if told.total is None:
        raise LoopwrightError(
            "what is held is not known: the trainer has not told, or Redis lost it; it tells again within seconds "
            "where it runs"
        )
    return [one for one in told.held if one.reason.startswith(reason or "")]


def _tell_plan(found: Sequence[Held], as_json: bool) -> None:
    if as_json:
        print_json({"would_release": [one.model_dump(mode="json") for one in found]})
    elif found:
        out.print(f"would be released: {_counted(found)}")
    else:
        out.print("nothing to release")


def _ask(found: Sequence[Held], named: Sequence[str]) -> None:
    """Ends the command unless a person says yes."""
    refuse_unasked()
    typer.confirm(
        f"Release what is held of {len(named)} responses ({_counted(found) or 'not known'})?",
        abort=True,
        err=True,
    )


def _counted(found: Sequence[Held]) -> str:
    return ", ".join(f"{n} ({reason})" for reason, n in sorted(Counter(one.reason for one in found).items()))
