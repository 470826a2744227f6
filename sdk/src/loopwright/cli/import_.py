"""`loopwright import`: import existing feedback."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loopwright.cli import import_files
from loopwright.cli.common import (
    EXIT_REFUSED,
    AsJson,
    FeedbackUrl,
    LineName,
    connect,
    err,
    out,
    print_json,
)
from loopwright.cli.import_files import SAFE
from loopwright.retry import Retry
from loopwright.seed_import import (
    DEFAULT_USER,
    DEFAULT_VERSION,
    MAX_FILE_BYTES,
    ImportedRow,
    ImportReport,
    RowError,
    import_rows,
    read_rows,
)

RATE_LIMIT_RETRY = Retry(longest_wait_s=65.0)
"""The feedback service limits the events per user and minute; an import waits for the next minute."""

HELP = f"Import existing feedback. {SAFE}"
app = typer.Typer(help=HELP, no_args_is_help=True)


app.command("langfuse")(import_files.langfuse)
app.command("openai")(import_files.openai)
app.command("preferences")(import_files.preferences)
app.command("csv")(import_files.csv)


@app.command("seed")
def seed(
    context: typer.Context,
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(help="JSON array of rows, or JSON lines. Use - to read stdin.", show_default=False),
    ],
    user: Annotated[
        str, typer.Option("--user", "-u", help="Id of the user that the feedback is attributed to.")
    ] = DEFAULT_USER,
    version: Annotated[
        str, typer.Option("--version", help="Name of the model that generated the responses.")
    ] = DEFAULT_VERSION,
    line: LineName = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Import rows {"input": ..., "response": ..., "feedback": ...} as responses with comments.

    Importing the same rows again changes nothing. Invalid rows are reported by line number (JSON lines) or position
    (JSON array) and skipped; the exit status is then 1.

    Example: loopwright import seed feedback.json
    """
    try:
        rows = read_rows(file.read(MAX_FILE_BYTES + 1))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not rows:
        raise typer.BadParameter("the file has no rows")
    with (
        connect(context, as_json, feedback_url=feedback_url, retry=RATE_LIMIT_RETRY) as loop,
        _progress_bar() as progress,
    ):
        task = progress.add_task("importing", total=len(rows))

        def on_row(result: ImportedRow | RowError) -> None:
            progress.advance(task)
            if not as_json:
                _print_problem(result)

        report = import_rows(loop, rows, user=user, version=version, line=line, on_row=on_row)
    if as_json:
        print_json(_as_json(report))
    else:
        out.print(_summary(report))
    if report.errors:
        raise typer.Exit(EXIT_REFUSED)


def _progress_bar() -> Progress:
    """Return a bar that is shown only on a terminal and removed at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _print_problem(result: ImportedRow | RowError) -> None:
    """Print rows that need attention."""
    if isinstance(result, RowError):
        err.print(f"[red]row {result.number}:[/] {escape(result.reason)}")
    elif result.hint:
        err.print(f"[yellow]row {result.number}:[/] {escape(result.hint)}")


def _summary(report: ImportReport) -> str:
    parts = [f"{report.count('accepted')} accepted", f"{report.count('duplicate')} duplicate"]
    parts += [f"{report.vague} too vague to train on"] if report.vague else []
    return ", ".join([*parts, f"{len(report.errors)} invalid"])


def _as_json(report: ImportReport) -> dict[str, object]:
    return {
        "accepted": report.count("accepted"),
        "duplicate": report.count("duplicate"),
        "vague": report.vague,
        "bad": len(report.errors),
        "rows": [asdict(row) for row in report.rows],
        "faults": [asdict(error) for error in report.errors],
    }
