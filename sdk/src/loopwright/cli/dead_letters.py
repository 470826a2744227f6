"""`loopwright dead-letters`: records that could not be processed, and their replay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Annotated

import typer
from rich.console import Console
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
    err,
    out,
    print_json,
    print_model,
    require_terminal,
)
from loopwright.cli.operator import ResultTimeout, Wait, print_result
from loopwright.client import Loopwright
from loopwright.models import DeadLetter, DeadLetterContent, RecordContent

PAGE_SIZE = 200
WIDTH_WITHOUT_TERMINAL = 240
"""Columns of a table that is not printed to a terminal, so that each row is one line."""
PREVIEW_ROWS = 20
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

app = typer.Typer(help="List records that could not be processed, and replay them.", no_args_is_help=True)


def parse_time(text: str) -> datetime:
    """Parse `30m`, `2h` or `3d` (before now), or an ISO 8601 date or time (local without a zone).

    Raises:
        typer.BadParameter: The text is neither.

    """
    age = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if age is not None:
        return datetime.now(timezone.utc) - timedelta(**{UNITS[age[2]]: int(age[1])})
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time: expected an age (30m, 2h, 3d) or a date or time (2026-03-01T12:00)"
        ) from None


ErrorClass = Annotated[
    str | None,
    typer.Option("--class", help="Only records with this class of error, for example oversized."),
]
TopicName = Annotated[str | None, typer.Option("--topic", help="Only records from this topic.")]
Since = Annotated[
    datetime | None,
    typer.Option(
        parser=parse_time,
        metavar="TIME",
        help="Only records that failed since then: an age (30m, 2h, 3d), or a date or time.",
    ),
]
Until = Annotated[
    datetime | None,
    typer.Option(
        parser=parse_time, metavar="TIME", help="Only records that failed before then, in the same formats."
    ),
]


@app.command("list")
def list_dead_letters(
    context: typer.Context,
    error_class: ErrorClass = None,
    topic: TopicName = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of records.")] = 50,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """List records that could not be processed, newest first.

    Example: loopwright dead-letters list --topic feedback.events --since 2h
    """
    with connect(context, as_json, console_url=console_url) as loop:
        letters, more = _find(loop, limit, None, error_class, topic, since, until)
    if as_json:
        print_json([letter.model_dump(mode="json", exclude_none=True) for letter in letters])
        return
    if not letters:
        out.print("no dead letters")
        return
    _print_table(letters, out)
    if more:
        out.print(f"the newest {len(letters)}; show more with --limit")


@app.command("show")
def show(
    context: typer.Context,
    position: Annotated[
        str,
        typer.Argument(
            help="Position of the record, as printed by `loopwright dead-letters list`, for example 3-1042.",
            show_default=False,
        ),
    ],
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show one record that could not be processed: its origin, the error and its content.

    Example: loopwright dead-letters show 3-1042
    """
    with connect(context, as_json, console_url=console_url) as loop:
        letter = loop.dead_letter(position)
    if as_json:
        print_model(letter)
        return
    for name, text in _describe(letter):
        out.print(f"[bold]{name:<12}[/] {escape(text)}")


@app.command("replay")
def replay(
    context: typer.Context,
    positions: Annotated[
        list[str] | None, typer.Argument(help="Positions of the records to replay.", show_default=False)
    ] = None,
    error_class: ErrorClass = None,
    topic: TopicName = None,
    since: Since = None,
    until: Until = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Replay all records that were not replayed yet.")
    ] = False,
    limit: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_IDS_PER_COMMAND, help="Maximum number of records; the newest are replayed."
        ),
    ] = MAX_IDS_PER_COMMAND,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be replayed.")] = False,
    yes: AssumeYes = False,
    wait: Wait = True,
    timeout: ResultTimeout = 120.0,
    line: LineName = None,
    command_id: CommandId = None,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to their original topics.

    Name their positions, or select them with filters or --all. Fix the cause first: a record that fails again becomes a
    new dead letter. Each dead letter is replayed once.

    Example: loopwright dead-letters replay --class oversized --since 2h
    """
    filtered = everything or any(value is not None for value in (error_class, topic, since, until))
    if bool(positions) == filtered:
        raise typer.BadParameter("either positions, or filters such as --class, or --all must be given")
    if len(positions or ()) > MAX_IDS_PER_COMMAND:
        raise typer.BadParameter(f"too many positions: at most {MAX_IDS_PER_COMMAND} per command")
    with connect(context, as_json, console_url=console_url) as loop:
        if positions:
            letters: Sequence[DeadLetter] = [loop.dead_letter(position) for position in positions]
            more = False
        else:
            letters, more = _find(loop, limit, False, error_class, topic, since, until)
        if dry_run or not letters:
            _print_plan(letters, more, as_json)
            return
        if not yes:
            _confirm(letters, more)
        command = loop.replay([letter.position for letter in letters], line=line, command_id=command_id)
        print_result(loop, command, "replay", timeout if wait else None, as_json)


@app.command("skip")
def skip(
    context: typer.Context,
    topic: Annotated[
        str, typer.Argument(help="Topic of the record, for example feedback.events.", show_default=False)
    ],
    position: Annotated[
        str,
        typer.Argument(
            help="Partition and offset of the record at which the partition halted, for example 3-1042: /readyz of "
            "the processor or the rollout names them.",
            show_default=False,
        ),
    ],
    reason: Annotated[
        str, typer.Option("--reason", help="Why the record may be skipped. It is kept with the command.")
    ],
    yes: AssumeYes = False,
    command_id: CommandId = None,
    wait: Wait = True,
    timeout: ResultTimeout = 120.0,
    line: LineName = None,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Let a halted partition continue without the record at which it stopped.

    The record becomes a dead letter, so it can be replayed later. If the partition is not halted at this record, the
    command is refused and nothing changes.

    Example: loopwright dead-letters skip feedback.events 3-1042 --reason "wrong data of an import"
    """
    found = re.fullmatch(r"([0-9]{1,4})-([0-9]{1,18})", position)
    if found is None:
        raise typer.BadParameter(
            f"{position!r} is not a position: expected PARTITION-OFFSET, for example 3-1042"
        )
    if not yes:
        require_terminal()
        typer.confirm(f"Continue partition {found[1]} without {topic} {position}?", abort=True, err=True)
    with connect(context, as_json, console_url=console_url) as loop:
        command = loop.skip(topic, int(found[1]), int(found[2]), reason, line=line, command_id=command_id)
        print_result(loop, command, "skip", timeout if wait else None, as_json)


def _find(
    loop: Loopwright,
    limit: int,
    replayed: bool | None,
    error_class: str | None,
    topic: str | None,
    since: datetime | None,
    until: datetime | None,
) -> tuple[list[DeadLetter], bool]:
    """Return the newest `limit` dead letters, and whether there may be more."""
    letters: list[DeadLetter] = []
    cursor: str | None = None
    while True:
        page = loop.dead_letters(
            error_class=error_class,
            topic=topic,
            since=since,
            until=until,
            replayed=replayed,
            cursor=cursor,
            limit=min(PAGE_SIZE, limit - len(letters)),
        )
        letters += page.dead_letters
        cursor = page.next
        if cursor is None or len(letters) >= limit:
            return letters, cursor is not None


def _print_plan(letters: Sequence[DeadLetter], more: bool, as_json: bool) -> None:
    if as_json:
        plan = [letter.model_dump(mode="json", exclude_none=True) for letter in letters]
        print_json({"would_replay": plan, "more": more})
        return
    if not letters:
        out.print("nothing to replay")
        return
    _print_table(letters, out)
    out.print(f"{_count(letters)} would be replayed" + ("; there may be more" if more else ""))


def _confirm(letters: Sequence[DeadLetter], more: bool) -> None:
    """Ask for confirmation, and end the command without it."""
    require_terminal()
    _print_table(letters[:PREVIEW_ROWS], err)
    if len(letters) > PREVIEW_ROWS:
        err.print(f"and {len(letters) - PREVIEW_ROWS} more")
    if more:
        err.print(f"there may be more than {_count(letters)}: run the command again for the others")
    typer.confirm(f"Replay {_count(letters)}?", abort=True, err=True)


def _count(letters: Sequence[DeadLetter]) -> str:
    return f"{len(letters)} dead letter{'s' * (len(letters) != 1)}"


def _print_table(letters: Sequence[DeadLetter], console: Console) -> None:
    table = Table("position", "failed at", "class", "origin", "bytes", "replayed", "message", box=None)
    for letter in letters:
        table.add_row(
            escape(letter.position),
            letter.at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            escape(letter.error_class),
            escape(_origin(letter)),
            str(letter.bytes),
            _replayed(letter),
            escape(_first_line(letter.message)),
        )
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH_WITHOUT_TERMINAL, highlight=False, emoji=False)
    console.print(table)


def _replayed(letter: DeadLetter) -> str:
    """Return whether the dead letter was replayed, or is itself a replay that failed again."""
    if letter.replayed_by is not None:
        return "[green]yes[/]"
    return f"failed again ({letter.replay_count})" if letter.replayed_from is not None else ""


def _origin(letter: DeadLetter) -> str:
    if letter.partition is None:
        return letter.topic
    return f"{letter.topic} {letter.partition}-{letter.offset if letter.offset is not None else '?'}"


def _first_line(text: str, limit: int = 100) -> str:
    first = text.split("\n", 1)[0]
    return first if len(first) <= limit else first[: limit - 1] + "…"


def _describe(letter: DeadLetterContent) -> list[tuple[str, str]]:
    """Return all properties of a dead letter as names and texts."""
    properties = [
        ("position", letter.position),
        ("failed at", letter.at.isoformat()),
        ("class", letter.error_class),
        ("message", letter.message),
        ("service", letter.service),
        ("origin", _origin(letter)),
        ("appended at", letter.appended_at.isoformat() if letter.appended_at else "unknown"),
        ("bytes", f"{letter.bytes}{' (too large to keep)' if letter.omitted else ''}"),
    ]
    if letter.replayed_from is not None:
        replays = f"replayed {letter.replay_count} time{'s' * (letter.replay_count != 1)} so far"
        properties.append(("replay of", f"{letter.replayed_from} ({replays})"))
    if letter.replayed_by is not None:
        properties.append(("replayed by", f"command {letter.replayed_by}"))
    properties.append(("key", _format_content(letter.key)))
    properties += [(f"header {name}", _format_content(value)) for name, value in letter.headers]
    properties.append(("value", _format_content(letter.value)))
    return properties


def _format_content(content: RecordContent | None) -> str:
    if content is None:
        return "none"
    suffix = f" … ({content.bytes} bytes in total)" if content.truncated else ""
    return ("hex " if content.encoding == "hex" else "") + _without_control_characters(content.data) + suffix


def _without_control_characters(text: str) -> str:
    """Replace control characters, which could steer the terminal: the content comes from anywhere."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)
