"""`loopwright import`: feedback that was collected elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loopwright.cli.common import (
    REFUSED,
    AsJson,
    FeedbackUrl,
    LineName,
    connected,
    err,
    escaped,
    out,
    print_json,
)
from loopwright.retry import Retry
from loopwright.seed_import import (
    MAX_FILE_BYTES,
    USER,
    VERSION,
    Fault,
    Imported,
    Sent,
    import_rows,
    read_rows,
)

PATIENT = Retry(longest_wait_s=65.0)
"""The door takes so many events of one user a minute; an import waits for the next one."""

imports = typer.Typer(help="Import feedback that was collected elsewhere.", no_args_is_help=True)


@imports.callback()
def root() -> None:
    """Import feedback that was collected elsewhere."""


@imports.command("seed")
def seed(
    context: typer.Context,
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(help="A JSON array, or one JSON object a line; - reads stdin.", show_default=False),
    ],
    user: Annotated[str, typer.Option("--user", "-u", help="Whose feedback it is counted as.")] = USER,
    version: Annotated[
        str, typer.Option("--version", help="Your name of the model that answered.")
    ] = VERSION,
    line: LineName = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Import rows {"input", "response", "feedback"} as responses with comments.

    The same rows again change nothing. Bad rows stop nothing.
    They are named by line (JSONL) or place (array), and make the exit status 1.

    Example: loopwright import seed feedback.json
    """
    try:
        found = read_rows(file.read(MAX_FILE_BYTES + 1))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not found:
        raise typer.BadParameter("there are no rows in it")
    with (
        connected(context, as_json, feedback_url=feedback_url, retry=PATIENT) as loop,
        _progress() as progress,
    ):
        task = progress.add_task("importing", total=len(found))

        def tell(done: Sent | Fault) -> None:
            progress.advance(task)
            if not as_json:
                _say(done)

        imported = import_rows(loop, found, user=user, version=version, line=line, told=tell)
    if as_json:
        print_json(_as_json(imported))
    else:
        out.print(_summary(imported))
    if imported.faults:
        raise typer.Exit(REFUSED)


def _progress() -> Progress:
    """A bar on a terminal; nothing elsewhere, and nothing left behind."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _say(done: Sent | Fault) -> None:
    """Only what a person must look at."""
    if isinstance(done, Fault):
        err.print(f"[red]row {done.number}:[/] {escaped(done.reason)}")
    elif done.hint:
        err.print(f"[yellow]row {done.number}:[/] {escaped(done.hint)}")


def _summary(imported: Imported) -> str:
    parts = [f"{imported.count('accepted')} accepted", f"{imported.count('duplicate')} duplicate"]
    parts += [f"{imported.vague} too vague to learn from"] if imported.vague else []
    return ", ".join([*parts, f"{len(imported.faults)} bad"])


def _as_json(imported: Imported) -> dict[str, object]:
    return {
        "accepted": imported.count("accepted"),
        "duplicate": imported.count("duplicate"),
        "vague": imported.vague,
        "bad": len(imported.faults),
        "rows": [asdict(row) for row in imported.sent],
        "faults": [asdict(fault) for fault in imported.faults],
    }
