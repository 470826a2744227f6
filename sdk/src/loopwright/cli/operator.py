"""`loopwright status`, `versions`, `rollout`, `train`, `artifacts` and `dataset`: requests to the console."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from loopwright.cli.common import (
    EXIT_REFUSED,
    AsJson,
    CommandId,
    ConsoleUrl,
    LineName,
    connect,
    err,
    out,
    print_json,
    print_model,
)
from loopwright.client import Loopwright
from loopwright.models import CanaryTest, Command, CommandKind

ARTIFACTS_HELP = "Manage the artifact store."
DATASET_HELP = "Export the collected dataset."
rollout = typer.Typer(help="Decide which version serves.", no_args_is_help=True)
train = typer.Typer(help="Start training, or reproduce a version.", no_args_is_help=True)
artifacts = typer.Typer(help=ARTIFACTS_HELP, no_args_is_help=True)
dataset = typer.Typer(help=DATASET_HELP, no_args_is_help=True)

NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Print the command's id and do not wait for its result.")
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the command's result.")]
ResultTimeout = Annotated[
    float, typer.Option("--timeout", min=1, help="Longest wait for the result, in seconds.")
]


def status(
    context: typer.Context, line: LineName = None, console_url: ConsoleUrl = None, as_json: AsJson = False
) -> None:
    """Show the state of the loop: the serving version, feedback by outcome, and the newest run.

    Example: loopwright status
    """
    with connect(context, as_json, console_url=console_url) as loop:
        state = loop.status(line).model_dump(mode="json")
    if as_json:
        print_json(state)
        return
    out.print(_add_json(Tree("[bold]Loopwright[/]"), state))


def versions(
    context: typer.Context, line: LineName = None, console_url: ConsoleUrl = None, as_json: AsJson = False
) -> None:
    """List all versions with their verdicts, and which of them serve.

    Example: loopwright versions --json
    """
    with connect(context, as_json, console_url=console_url) as loop:
        found = loop.versions(line)
    if as_json:
        print_json([version.model_dump(mode="json", exclude_none=True) for version in found])
        return
    table = Table("version", "verdict", "serving", "created at", box=None)
    for version in found:
        created_at = version.created_at.astimezone().strftime("%Y-%m-%d %H:%M") if version.created_at else ""
        serving = "[green]yes[/]" if version.serving else ""
        table.add_row(escape(version.version), escape(version.verdict or "-"), serving, created_at)
    out.print(table)


@rollout.command("status")
def rollout_status(
    context: typer.Context, line: LineName = None, console_url: ConsoleUrl = None, as_json: AsJson = False
) -> None:
    """Show what serves, both arms of the canary with their intervals, and what the canary waits for.

    Example: loopwright rollout status
    """
    with connect(context, as_json, console_url=console_url) as loop:
        state = loop.rollout(line)
    if as_json:
        print_json(state.model_dump(mode="json", exclude_none=True))
        return
    paused = ", promotions are paused" if state.paused else ""
    replicas = state.replicas
    reported = (
        f"serves on {replicas.serving} of {replicas.live} replicas" if replicas.serving else "is ordered"
    )
    out.print(f"[bold]{escape(state.stable)}[/] {reported}{paused}")
    if not replicas.serving:
        out.print(f"[yellow]none of {replicas.live} replicas reports that it serves this version[/]")
    if replicas.refused is not None:
        out.print(f"[yellow]{escape(replicas.refused)}[/]")
    if state.canary is not None:
        served = "" if state.replicas.canary else ", which no replica serves yet,"
        out.print(f"[bold]{escape(state.canary)}[/]{served} is the canary of {state.share:.0%} of the users")
    if state.waiting is not None:
        out.print(f"[bold]{escape(state.waiting)}[/] waits")
    out.print(f"decision {state.seq}, {state.action}: {escape(state.reason)}")
    if state.test is not None:
        if state.canary is None:
            out.print(f"last canary: [bold]{escape(state.test.canary.version)}[/]")
        out.print(_arms(state.test))
        out.print(
            f"worse: p = {state.test.harm_p:.2g}, rolled back at {state.test.harm_alpha:.2g}; not worse by "
            f"{state.test.margin:.0%} points: p = {state.test.promotion_p:.2g}, takes over in the last step at "
            f"{state.test.promotion_alpha:.2g}"
        )
    for text in state.waits_for:
        out.print(f"waits for {escape(text)}")


def _arms(test: CanaryTest) -> Table:
    table = Table("", "users", "rated", "satisfied (95 %)", "failed", "latency", box=None)
    for name, arm in (("canary", test.canary), ("stable", test.stable)):
        table.add_row(
            name,
            str(arm.seen),
            str(arm.users),
            "-" if arm.mean is None else f"{arm.mean:.0%} ({arm.low:.0%} to {arm.high:.0%})",
            "-" if arm.failed is None else f"{arm.failed:.1%}",
            "-" if arm.latency_ms is None else f"{arm.latency_ms:.0f} ms",
        )
    return table


@rollout.command("promote")
def promote(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="Name of the version.", show_default=False)],
    line: LineName = None,
    command_id: CommandId = None,
    no_wait: NoWait = False,
    timeout: ResultTimeout = 120.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a version that passed the gate serve all users.

    Example: loopwright rollout promote assistant@v3-1f2e3d4c
    """
    _run(context, "promote", line, version, command_id, None if no_wait else timeout, console_url, as_json)


@rollout.command("rollback")
def rollback(
    context: typer.Context,
    version: Annotated[
        str | None,
        typer.Argument(help="Version to return to. Default: the one that served before.", show_default=False),
    ] = None,
    leaving: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="VERSION",
            help="Version to roll back from. If another one serves, nothing changes.",
            show_default="the canary, if there is one and no VERSION is given; else the one that serves now",
        ),
    ] = None,
    line: LineName = None,
    command_id: CommandId = None,
    no_wait: NoWait = False,
    timeout: ResultTimeout = 120.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Return to an earlier version, and pause promotion of the same data. A canary is rolled back first.

    Repeated rollbacks walk back further, to the base. `loopwright status` lists the earlier versions.

    Example: loopwright rollout rollback
    """
    with connect(context, as_json, console_url=console_url) as loop:
        if leaving is None:
            serving = loop.status(line).serving
            if serving is not None:
                leaving = (
                    serving.canary if serving.canary is not None and version is None else serving.version
                )
            if leaving is not None and not as_json:
                err.print(f"rolling back from {escape(leaving)}")
        issue(
            loop,
            "rollback",
            line,
            version,
            command_id,
            None if no_wait else timeout,
            as_json,
            leaving=leaving,
        )


@rollout.command("pin")
def pin(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="Name of the version.", show_default=False)],
    line: LineName = None,
    command_id: CommandId = None,
    no_wait: NoWait = False,
    timeout: ResultTimeout = 120.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a version serve regardless of its verdict, and keep it serving until `loopwright rollout resume`.

    Example: loopwright rollout pin assistant@v3-1f2e3d4c
    """
    _run(context, "pin", line, version, command_id, None if no_wait else timeout, console_url, as_json)


@rollout.command("pause")
def pause(
    context: typer.Context,
    line: LineName = None,
    command_id: CommandId = None,
    no_wait: NoWait = False,
    timeout: ResultTimeout = 120.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Pause automatic promotions: new versions wait until `loopwright rollout resume`.

    Example: loopwright rollout pause
    """
    _run(context, "pause", line, None, command_id, None if no_wait else timeout, console_url, as_json)


@rollout.command("resume")
def resume(
    context: typer.Context,
    line: LineName = None,
    command_id: CommandId = None,
    no_wait: NoWait = False,
    timeout: ResultTimeout = 120.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """End a pause or a pin: versions that pass the gate are promoted again.

    Example: loopwright rollout resume
    """
    _run(context, "resume", line, None, command_id, None if no_wait else timeout, console_url, as_json)


@train.command("now")
def train_now(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be trained, and what is missing.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Train also if nothing is new: the same data with the trainer's present settings, for example after "
            "a run that failed or was inconclusive.",
        ),
    ] = False,
    line: LineName = None,
    command_id: CommandId = None,
    no_wait: NoWait = False,
    timeout: ResultTimeout = 3600.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Train a version now, without waiting for the threshold, the quiet hours or the interval.

    Example: loopwright train now --dry-run
    """
    _run(
        context,
        "train_now",
        line,
        None,
        command_id,
        None if no_wait else timeout,
        console_url,
        as_json,
        dry_run=dry_run,
        again=again,
    )


@train.command("reproduce")
def reproduce(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="Name of the version.", show_default=False)],
    line: LineName = None,
    command_id: CommandId = None,
    no_wait: NoWait = False,
    timeout: ResultTimeout = 3600.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Train a version again from its snapshot, and compare the result with the version.

    Nothing is published. It starts when the current run has ended, and the next run starts after it.

    Example: loopwright train reproduce assistant@v3-1f2e3d4c
    """
    _run(context, "reproduce", line, version, command_id, None if no_wait else timeout, console_url, as_json)


@artifacts.callback(help=ARTIFACTS_HELP)
def _artifacts() -> None:
    """Make `artifacts` a group of commands although it has only one."""


@artifacts.command("gc")
def artifacts_gc(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    line: LineName = None,
    command_id: CommandId = None,
    no_wait: NoWait = False,
    timeout: ResultTimeout = 600.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts that are neither in use nor recent.

    Example: loopwright artifacts gc --dry-run
    """
    _run(
        context,
        "collect_garbage",
        line,
        None,
        command_id,
        None if no_wait else timeout,
        console_url,
        as_json,
        dry_run=dry_run,
    )


@dataset.callback(help=DATASET_HELP)
def _dataset() -> None:
    """Make `dataset` a group of commands although it has only one."""


@dataset.command("export")
def dataset_export(
    context: typer.Context,
    line: LineName = None,
    command_id: CommandId = None,
    no_wait: NoWait = False,
    timeout: ResultTimeout = 600.0,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Export the training data in TRL's formats, as JSON lines and Parquet.

    The files are written to the trainer's disk; the result names the folder.

    Example: loopwright dataset export
    """
    _run(
        context, "export_dataset", line, None, command_id, None if no_wait else timeout, console_url, as_json
    )


def _run(
    context: typer.Context,
    kind: CommandKind,
    line: str | None,
    version: str | None,
    command_id: str | None,
    timeout: float | None,
    console_url: str | None,
    as_json: bool,
    *,
    dry_run: bool = False,
    again: bool = False,
) -> None:
    """Connect, issue a command and print its result; see `print_result`."""
    with connect(context, as_json, console_url=console_url) as loop:
        issue(loop, kind, line, version, command_id, timeout, as_json, dry_run=dry_run, again=again)


def issue(
    loop: Loopwright,
    kind: CommandKind,
    line: str | None,
    version: str | None,
    command_id: str | None,
    timeout: float | None,
    as_json: bool,
    *,
    leaving: str | None = None,
    dry_run: bool = False,
    again: bool = False,
) -> None:
    """Issue a command and print its result; see `print_result`."""
    command = loop.command(
        kind,
        line=line,
        version=version,
        leaving=leaving,
        dry_run=dry_run,
        again=again,
        command_id=command_id,
    )
    print_result(loop, command, kind, timeout, as_json)


def print_result(loop: Loopwright, command: Command, kind: str, timeout: float | None, as_json: bool) -> None:
    """Wait up to `timeout` seconds for a command's result and print it; if it is None, only print the command's id.

    Raises:
        typer.Exit: The command was refused or failed.

    """
    if timeout is None:
        if as_json:
            print_json({"command_id": command.command_id})
        else:
            out.print(f"accepted [bold]{escape(command.command_id)}[/]")
        return
    if not as_json:
        err.print(f"command {escape(command.command_id)}")
    with err.status(f"{kind}: accepted, waiting for the result"):
        result = loop.wait_for_result(command.command_id, timeout=timeout)
    if as_json:
        print_model(result)
    else:
        colour = "green" if result.status == "done" else "red"
        out.print(f"[{colour}]{result.status}[/] {escape(result.message)}".rstrip())
    if result.status != "done":
        raise typer.Exit(EXIT_REFUSED)


def _add_json(tree: Tree, value: Any) -> Tree:
    """Add nested JSON to a tree, in its order, without the values that are None. Return the tree."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value, 1)
    for name, item in pairs:
        if isinstance(item, dict | list):
            _add_json(tree.add(f"[bold]{escape(str(name))}[/]"), item)
        elif item is not None:
            tree.add(f"{escape(str(name))}: {escape(str(item))}")
    return tree
