"""`loopwright dead-letters`: records that could not be processed, why, and the way back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from loopwright.cli.common import (
    AsJson,
    ConsoleUrl,
    LineName,
    connected,
    err,
    escaped,
    out,
    print_json,
    refuse_unasked,
)
from loopwright.cli.operator import Patience, follow
from loopwright.client import Loopwright
from loopwright.models import Content, DeadLetter, DeadLetterContent

PAGE = 200
AT_ONCE = 1_000
"""What one command may name."""
WIDE = 240
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

dead_letters = typer.Typer(
    help="See records that could not be processed, and replay them.", no_args_is_help=True
)


def moment(text: str) -> datetime:
    """`30m`, `2h`, `3d` ago, or a date or time as ISO 8601, local if it names no zone. Raises BadParameter."""
    ago = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if ago is not None:
        return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time: give 30m, 2h, 3d or 2026-03-01T12:00") from None


ErrorClass = Annotated[str | None, typer.Option("--class", help="Of this class of error, such as oversized.")]
TopicName = Annotated[str | None, typer.Option("--topic", help="That came from this topic.")]
Since = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="TIME", help="Not older: 30m, 2h, 3d ago, or a date or time."),
]
Until = Annotated[datetime | None, typer.Option(parser=moment, metavar="TIME", help="Older than this.")]


@dead_letters.command("list")
def listed(
    context: typer.Context,
    error_class: ErrorClass = None,
    topic: TopicName = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """List records that could not be processed, newest first.

    Example: loopwright dead-letters list --topic feedback.events --since 2h
    """
    with connected(context, as_json, console_url=console_url) as loop:
        found, more = _found(loop, limit, None, error_class, topic, since, until)
    if as_json:
        print_json([letter.model_dump(mode="json", exclude_none=True) for letter in found])
        return
    if not found:
        out.print("no dead letters")
        return
    _print(table(found), out)
    if more:
        out.print(f"the newest {len(found)}; more with --limit")


@dead_letters.command("show")
def show(
    context: typer.Context,
    position: Annotated[str, typer.Argument(help="As `list` shows it, such as 3-1042.", show_default=False)],
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show everything about one: where it came from, why it failed, what it held.

    Example: loopwright dead-letters show 3-1042
    """
    with connected(context, as_json, console_url=console_url) as loop:
        letter = loop.dead_letter(position)
    if as_json:
        print_json(letter.model_dump(mode="json", exclude_none=True))
        return
    for name, told in described(letter):
        out.print(f"[bold]{name:<12}[/] {escaped(told)}")


@dead_letters.command("replay")
def replay(
    context: typer.Context,
    positions: Annotated[
        list[str] | None, typer.Argument(help="Those at these positions.", show_default=False)
    ] = None,
    error_class: ErrorClass = None,
    topic: TopicName = None,
    since: Since = None,
    until: Until = None,
    everything: Annotated[bool, typer.Option("--all", help="All that were not replayed yet.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=AT_ONCE, help="At most so many, the newest.")] = AT_ONCE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be replayed, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for what comes of it.")] = True,
    timeout: Patience = 120.0,
    line: LineName = None,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to the topics they came from: by position, or by what they are. Each goes back once.

    Mend the cause first: what fails again is a new dead letter, which names the one before.

    Example: loopwright dead-letters replay --class oversized --since 2h
    """
    filtered = everything or any(value is not None for value in (error_class, topic, since, until))
    if bool(positions) == filtered:
        raise typer.BadParameter("say which: positions, or filters such as --class, or --all")
    if len(positions or ()) > AT_ONCE:
        raise typer.BadParameter(f"at most {AT_ONCE} at once")
    with connected(context, as_json, console_url=console_url) as loop:
        if positions:
            found: Sequence[DeadLetter] = [loop.dead_letter(position) for position in positions]
            more = False
        else:
            found, more = _found(loop, limit, False, error_class, topic, since, until)
        if dry_run or not found:
            _tell_plan(found, more, as_json)
            return
        if not yes:
            _ask(found, more)
        given = loop.replay([letter.position for letter in found], line=line)
        follow(loop, given, "replay", timeout if wait else None, as_json)


def _found(
    loop: Loopwright,
    limit: int,
    replayed: bool | None,
    error_class: str | None,
    topic: str | None,
    since: datetime | None,
    until: datetime | None,
) -> tuple[list[DeadLetter], bool]:
    """The newest `limit`, and whether there may be more."""
    found: list[DeadLetter] = []
    cursor: str | None = None
    while True:
        page = loop.dead_letters(
            error_class=error_class,
            topic=topic,
            since=since,
            until=until,
            replayed=replayed,
            cursor=cursor,
            limit=min(PAGE, limit - len(found)),
        )
        found += page.dead_letters
        cursor = page.next
        if cursor is None or len(found) >= limit:
            return found, cursor is not None


def _tell_plan(found: Sequence[DeadLetter], more: bool, as_json: bool) -> None:
    if as_json:
        letters = [letter.model_dump(mode="json", exclude_none=True) for letter in found]
        print_json({"would_replay": letters, "more": more})
        return
    if not found:
        out.print("nothing to replay")
        return
    _print(table(found), out)
    out.print(f"{_counted(len(found))} would be replayed" + (", and there may be more" if more else ""))


def _ask(found: Sequence[DeadLetter], more: bool) -> None:
    """Ends the command unless a person says yes."""
    refuse_unasked()
    _print(table(found[:20]), err)
    if len(found) > 20:
        err.print(f"and {len(found) - 20} more")
    if more:
        err.print(f"there may be more than these {len(found)}: run it again for them")
    typer.confirm(f"Replay {_counted(len(found))}?", abort=True, err=True)


def _counted(count: int) -> str:
    return f"{count} dead letter{'s' * (count != 1)}"


def table(letters: Sequence[DeadLetter]) -> Table:
    """One row each."""
    shown = Table("position", "died", "class", "from", "bytes", "replayed", "message", box=None)
    for letter in letters:
        shown.add_row(
            escaped(letter.position),
            letter.at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            escaped(letter.error_class),
            escaped(_origin(letter)),
            str(letter.bytes),
            _replayed(letter),
            escaped(_first_line(letter.message)),
        )
    return shown


def _print(made: Table, console: Console) -> None:
    """A row is one line where nobody looks at a screen of some width."""
    wide = console if console.is_terminal else Console(file=console.file, width=WIDE, highlight=False)
    wide.print(made)


def _replayed(letter: DeadLetter) -> str:
    """Whether it went back, or had been sent back before it died here."""
    if letter.replayed_by is not None:
        return "[green]yes[/]"
    return f"failed again ({letter.replay_count})" if letter.replayed_from is not None else ""


def _origin(letter: DeadLetter) -> str:
    return (
        letter.topic
        if letter.partition is None
        else f"{letter.topic} {letter.partition}-{letter.offset if letter.offset is not None else '?'}"
    )


def _first_line(text: str, limit: int = 100) -> str:
    first = text.split("\n", 1)[0]
    return first if len(first) <= limit else first[: limit - 1] + "…"


def described(letter: DeadLetterContent) -> list[tuple[str, str]]:
    """Everything about one, as name and text."""
    told = [
        ("position", letter.position),
        ("died", letter.at.isoformat()),
        ("class", letter.error_class),
        ("message", letter.message),
        ("service", letter.service),
        ("from", _origin(letter)),
        ("appended", letter.appended_at.isoformat() if letter.appended_at else "not known"),
        ("bytes", f"{letter.bytes}{', too large to be kept' if letter.omitted else ''}"),
    ]
    if letter.replayed_from is not None:
        told.append(
            ("replayed from", f"{letter.replayed_from}; it went back {letter.replay_count} times so far")
        )
    if letter.replayed_by is not None:
        told.append(("replayed by", f"command {letter.replayed_by}"))
    told.append(("key", _content(letter.key)))
    told += [(f"header {name}", _content(value)) for name, value in letter.headers]
    told.append(("value", _content(letter.value)))
    return told


def _content(content: Content | None) -> str:
    if content is None:
        return "none"
    cut = f" … ({content.bytes} bytes in all)" if content.truncated else ""
    return ("hex " if content.encoding == "hex" else "") + _harmless(content.data) + cut


def _harmless(text: str) -> str:
    """Without what would steer a terminal: these are bytes that nobody could read so far."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)
