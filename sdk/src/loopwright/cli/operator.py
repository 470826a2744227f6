"""`loopwright status`, `versions`, `rollout`, `train`, `artifacts` and `dataset`: what the operator sees
and orders, by way of the console."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.tree import Tree

from loopwright.cli.common import (
    REFUSED,
    AsJson,
    ConsoleUrl,
    LineName,
    connected,
    err,
    escaped,
    out,
    print_json,
)
from loopwright.client import Loopwright
from loopwright.models import Command, CommandKind

rollout = typer.Typer(help="Decide which version serves.", no_args_is_help=True)
train = typer.Typer(help="Decide when a version is trained.", no_args_is_help=True)
artifacts = typer.Typer(help="Keep the store of versions small.", no_args_is_help=True)
dataset = typer.Typer(help="Take what was collected elsewhere.", no_args_is_help=True)

NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Do not wait for the result; print the command's id.")
]
Patience = Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for the result.")]


def status(
    context: typer.Context, line: LineName = None, console_url: ConsoleUrl = None, as_json: AsJson = False
) -> None:
    """Show what the loop is doing.

    Example: loopwright status
    """
    with connected(context, as_json, console_url=console_url) as loop:
        found = loop.status(line).model_dump(mode="json")
    if as_json:
        print_json(found)
        return
    out.print(_branch(Tree("[bold]Loopwright[/]"), found))


def versions(
    context: typer.Context, line: LineName = None, console_url: ConsoleUrl = None, as_json: AsJson = False
) -> None:
    """List all versions with their verdicts; the one that serves is marked.

    Example: loopwright versions --json
    """
    with connected(context, as_json, console_url=console_url) as loop:
        found = loop.versions(line)
    if as_json:
        print_json([version.model_dump(mode="json", exclude_none=True) for version in found])
        return
    table = Table("version", "verdict", "serving", "made", box=None)
    for version in found:
        made = version.created_at.astimezone().strftime("%Y-%m-%d %H:%M") if version.created_at else ""
        mark = "[green]yes[/]" if version.serving else ""
        table.add_row(escaped(version.version), escaped(version.verdict or "-"), mark, made)
    out.print(table)


@rollout.command("promote")
def promote(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="The version to serve.", show_default=False)],
    line: LineName = None,
    no_wait: NoWait = False,
    timeout: Patience = 120.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the one that serves.

    Example: loopwright rollout promote assistant@v3-1f2e3d4c
    """
    _order(context, "promote", line, version, None if no_wait else timeout, console_url, as_json)


@rollout.command("rollback")
def rollback(
    context: typer.Context,
    version: Annotated[
        str | None,
        typer.Argument(help="Where to; without it, the version that served before.", show_default=False),
    ] = None,
    line: LineName = None,
    no_wait: NoWait = False,
    timeout: Patience = 120.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Go back to the version that served before.

    Example: loopwright rollout rollback
    """
    _order(context, "rollback", line, version, None if no_wait else timeout, console_url, as_json)


@rollout.command("pin")
def pin(
    context: typer.Context,
    version: Annotated[
        str, typer.Argument(help="The version to serve, whatever the gate said.", show_default=False)
    ],
    line: LineName = None,
    no_wait: NoWait = False,
    timeout: Patience = 120.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a version serve whatever its verdict, and let no other take over until `resume`.

    Example: loopwright rollout pin assistant@v3-1f2e3d4c
    """
    _order(context, "pin", line, version, None if no_wait else timeout, console_url, as_json)


@rollout.command("pause")
def pause(
    context: typer.Context,
    line: LineName = None,
    no_wait: NoWait = False,
    timeout: Patience = 120.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Keep the version that serves; what passes the gate waits until `resume`.

    Example: loopwright rollout pause
    """
    _order(context, "pause", line, None, None if no_wait else timeout, console_url, as_json)


@rollout.command("resume")
def resume(
    context: typer.Context,
    line: LineName = None,
    no_wait: NoWait = False,
    timeout: Patience = 120.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """End a pause or a pin: versions that pass the gate take over again.

    Example: loopwright rollout resume
    """
    _order(context, "resume", line, None, None if no_wait else timeout, console_url, as_json)


@train.command("now")
def train_now(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be trained, and what is missing.")
    ] = False,
    line: LineName = None,
    no_wait: NoWait = False,
    timeout: Patience = 3600.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Train a version from what was collected, without waiting for threshold, quiet hours or interval.

    Example: loopwright train now --dry-run
    """
    patience = None if no_wait else timeout
    _order(context, "train_now", line, None, patience, console_url, as_json, dry_run=dry_run)


@train.command("reproduce")
def reproduce(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="The version to train again.", show_default=False)],
    line: LineName = None,
    no_wait: NoWait = False,
    timeout: Patience = 3600.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Train a version again from its snapshot, aside, and say whether the same came of it, bit by bit or closely.

    Nothing is published. It waits for a run that is under way, and the next run waits for it.

    Example: loopwright train reproduce assistant@v3-1f2e3d4c
    """
    _order(context, "reproduce", line, version, None if no_wait else timeout, console_url, as_json)


@artifacts.callback()
def _artifacts() -> None:
    """Keep the store of versions small."""


@artifacts.command("gc")
def artifacts_gc(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    line: LineName = None,
    no_wait: NoWait = False,
    timeout: Patience = 600.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Take out of the artifact store what no rollout, candidate, recent version or run needs.

    Example: loopwright artifacts gc --dry-run
    """
    patience = None if no_wait else timeout
    _order(context, "collect_garbage", line, None, patience, console_url, as_json, dry_run=dry_run)


@dataset.callback()
def _dataset() -> None:
    """Take what was collected elsewhere."""


@dataset.command("export")
def dataset_export(
    context: typer.Context,
    line: LineName = None,
    no_wait: NoWait = False,
    timeout: Patience = 600.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write all that may train as JSONL and Parquet in TRL's formats; says where, on the trainer's disk.

    Example: loopwright dataset export
    """
    _order(context, "export_dataset", line, None, None if no_wait else timeout, console_url, as_json)


def _order(
    context: typer.Context,
    kind: CommandKind,
    line: str | None,
    version: str | None,
    patience: float | None,
    console_url: str | None,
    as_json: bool,
    *,
    dry_run: bool = False,
) -> None:
    """Give a command and, with `patience` in seconds, wait for what comes of it; exit status 1 if it was not done."""
    with connected(context, as_json, console_url=console_url) as loop:
        given = loop.command(kind, line=line, version=version, dry_run=dry_run)
        follow(loop, given, kind, patience, as_json)


def follow(loop: Loopwright, given: Command, kind: str, patience: float | None, as_json: bool) -> None:
    """Say that it was accepted; or, with `patience` in seconds, wait and say what came of it."""
    if patience is None:
        if as_json:
            print_json({"command_id": given.command_id})
        else:
            out.print(f"accepted [bold]{escaped(given.command_id)}[/]")
        return
    with err.status(f"{kind}: accepted, waiting for the result"):
        result = loop.wait_for_result(given.command_id, timeout=patience)
    if as_json:
        print_json(result.model_dump(mode="json", exclude_none=True))
    else:
        colour = "green" if result.status == "done" else "red"
        out.print(f"[{colour}]{result.status}[/] {escaped(result.message)}".rstrip())
    if result.status != "done":
        raise typer.Exit(REFUSED)


def _branch(tree: Tree, value: Any) -> Tree:
    """Nested JSON as a tree, in the order it came."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value, 1)
    for name, item in pairs:
        if isinstance(item, dict | list):
            _branch(tree.add(f"[bold]{escaped(str(name))}[/]"), item)
        elif item is not None:
            tree.add(f"{escaped(str(name))}: {escaped(str(item))}")
    return tree
