"""`loopwright import langfuse|openai|preferences|csv`: import existing feedback from files, in bulk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, cast

import typer

from loopwright.cli.common import AsJson, FeedbackUrl, LineName
from loopwright.cli.import_run import Options, Source, run
from loopwright.imports.csv_table import COLUMNS, Columns, read_csv
from loopwright.imports.fine_tuning import read_fine_tuning
from loopwright.imports.langfuse import open_trace_users, read_scores, read_traces
from loopwright.imports.langfuse_scores import USES, ScoreUse
from loopwright.imports.preferences import read_preferences
from loopwright.imports.rows import DEFAULT_USER, DEFAULT_VERSION, Defaults, ParsedRow

SAFE: Final = (
    "Importing a file again changes nothing, because ids are made from its rows. After Ctrl-C or an outage the same "
    "command continues where it stopped."
)

InputFile = Annotated[
    typer.FileBinaryRead, typer.Argument(help="The file. Use - to read stdin.", show_default=False)
]
User = Annotated[
    str,
    typer.Option("--user", "-u", help="Id of the user of feedback that names none. It is tagged `imported`."),
]
VersionName = Annotated[str, typer.Option("--version", help="Name of the model of responses that name none.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only let the service check the rows; write nothing.")
]
RefusedFile = Annotated[
    Path | None,
    typer.Option(
        "--refused",
        metavar="FILE",
        help="Write refused rows to this file, one JSON object with `line`, `reason` and `row` per line.",
        show_default=False,
    ),
]


def openai(
    context: typer.Context,
    file: InputFile,
    user: User = DEFAULT_USER,
    version: VersionName = DEFAULT_VERSION,
    line: LineName = None,
    dry_run: DryRun = False,
    refused: RefusedFile = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Import OpenAI fine-tuning data: rows {"messages": [...]}.

    Each answer becomes a response that the user liked. If a row has a model's answer in the field `original`, that is
    the response, and the row's last answer is the correction of it.

    Example: loopwright import openai training.jsonl --dry-run
    """
    options = Options(context, Defaults(user, version, line), feedback_url, as_json, dry_run, refused)
    run([_source(file, partial(read_fine_tuning, defaults=options.defaults))], options, "openai")


def preferences(
    context: typer.Context,
    file: InputFile,
    user: User = DEFAULT_USER,
    version: VersionName = DEFAULT_VERSION,
    line: LineName = None,
    dry_run: DryRun = False,
    refused: RefusedFile = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Import OpenAI preference data: rows with `input`, `preferred_output` and `non_preferred_output`.

    The preferred output becomes a response that the user prefers over the other one.

    Example: loopwright import preferences pairs.jsonl
    """
    options = Options(context, Defaults(user, version, line), feedback_url, as_json, dry_run, refused)
    run([_source(file, partial(read_preferences, defaults=options.defaults))], options, "preferences")


def _column(use: str) -> Any:
    names = " or ".join(COLUMNS[use])
    return typer.Option(
        f"--{use.replace('_', '-')}", metavar="COLUMN", help=COLUMN_HELP[use], show_default=names
    )


COLUMN_HELP: Final = {
    "input": "Column with what the user asked.",
    "response": "Column with the answer.",
    "response_id": "Column with ids of responses. Rows with an id and without an answer are about recorded responses.",
    "user": "Column with your ids of the users.",
    "thumbs": "Column with thumbs: up or down, 1 or 0, yes or no.",
    "rating": "Column with ratings from 1 (bad) to 5 (good).",
    "correction": "Column with what the answer should have been.",
    "comment": "Column with comments on the answer.",
    "rejected": "Column with a worse answer: the user prefers `response` over it.",
    "version": "Column with names of the models.",
    "created_at": "Column with times in ISO 8601; without a zone, they are UTC.",
}


def csv(
    context: typer.Context,
    file: InputFile,
    input_: Annotated[str | None, _column("input")] = None,
    response: Annotated[str | None, _column("response")] = None,
    response_id: Annotated[str | None, _column("response_id")] = None,
    user_column: Annotated[
        str | None,
        typer.Option(
            "--user-column",
            metavar="COLUMN",
            help=COLUMN_HELP["user"],
            show_default=" or ".join(COLUMNS["user"]),
        ),
    ] = None,
    thumbs: Annotated[str | None, _column("thumbs")] = None,
    rating: Annotated[str | None, _column("rating")] = None,
    correction: Annotated[str | None, _column("correction")] = None,
    comment: Annotated[str | None, _column("comment")] = None,
    rejected: Annotated[str | None, _column("rejected")] = None,
    version_column: Annotated[
        str | None,
        typer.Option(
            "--version-column",
            metavar="COLUMN",
            help=COLUMN_HELP["version"],
            show_default=" or ".join(COLUMNS["version"]),
        ),
    ] = None,
    created_at: Annotated[str | None, _column("created_at")] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            metavar="CHARACTER",
            help="What separates cells.",
            show_default="the one of , ; | and tab that the first line has most of",
        ),
    ] = None,
    user: User = DEFAULT_USER,
    version: VersionName = DEFAULT_VERSION,
    line: LineName = None,
    dry_run: DryRun = False,
    refused: RefusedFile = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Import a table with a header: one answer per row, with the feedback that its columns hold.

    Example: loopwright import csv answers.csv --input question --thumbs helpful
    """
    named = {
        "input": input_,
        "response": response,
        "response_id": response_id,
        "user": user_column,
        "thumbs": thumbs,
        "rating": rating,
        "correction": correction,
        "comment": comment,
        "rejected": rejected,
        "version": version_column,
        "created_at": created_at,
    }
    separator = "\t" if delimiter in {"\\t", "tab"} else delimiter
    if separator is not None and (len(separator) != 1 or separator in '\r\n"'):
        raise typer.BadParameter("expected one character, for example ; or tab", param_hint="--delimiter")
    columns = Columns({use: name for use, name in named.items() if name}, separator)
    options = Options(context, Defaults(user, version, line), feedback_url, as_json, dry_run, refused)
    run(
        [_source(file, partial(read_csv, defaults=options.defaults, columns=columns))],
        options,
        "csv",
        columns,
    )


def langfuse(
    context: typer.Context,
    scores: Annotated[
        typer.FileBinaryRead,
        typer.Argument(
            help="Scores: JSON lines, an array, or pages of GET /api/public/scores.", show_default=False
        ),
    ],
    traces: Annotated[
        typer.FileBinaryRead | None,
        typer.Option(
            help="Traces, likewise. They become the responses that the scores are about.", show_default=False
        ),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=USE",
            help=f"What scores of a name are: {', '.join(USES)}. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    version: VersionName = DEFAULT_VERSION,
    line: LineName = None,
    dry_run: DryRun = False,
    refused: RefusedFile = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Import scores that users gave, and the traces that they are about, from Langfuse.

    Only names known as feedback of users count, such as user-feedback and user-rating; --score adds others.

    Example: loopwright import langfuse scores.json --traces traces.json --score accuracy=ignore
    """
    uses = dict(_use(each) for each in score or ())
    options = Options(context, Defaults(version=version, line=line), feedback_url, as_json, dry_run, refused)
    with open_trace_users() as users:
        sources = [
            _source(scores, partial(read_scores, defaults=options.defaults, users=users, uses=uses)),
        ]
        if traces is not None:
            sources.insert(0, _source(traces, partial(read_traces, defaults=options.defaults, users=users)))
        run(sources, options, "langfuse", sorted(uses.items()))


def _use(text: str) -> tuple[str, ScoreUse]:
    name, _, use = text.rpartition("=")
    if not name or use not in USES:
        raise typer.BadParameter(f"expected NAME=USE with {', '.join(USES)}", param_hint="--score")
    return name, cast("ScoreUse", use)


def _source(file: typer.FileBinaryRead, read: Callable[[BinaryIO], Iterator[ParsedRow]]) -> Source:
    stream = cast("BinaryIO", file)
    name = str(getattr(stream, "name", "-"))
    return Source("stdin" if stream is sys.stdin.buffer else name, stream, read)
