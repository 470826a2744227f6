"""`loopwright lineage` and `loopwright diff`: what versions were trained on, and how they differ. No users' text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from loopwright.cli.common import AsJson, TrainerUrl, connect, out, print_json
from loopwright.models import Diff, Lineage, LineageBatch, Trace, TraceResponse, TraceRun

PSEUDONYM_CHARS = 12
"""Printed characters of a user's pseudonym."""


def lineage(
    context: typer.Context,
    version: Annotated[
        str | None,
        typer.Argument(help="Show the events that this version was trained on.", show_default=False),
    ] = None,
    up: Annotated[
        str | None,
        typer.Option("--up", metavar="EVENT", help="Show the runs and versions that this event reached."),
    ] = None,
    response: Annotated[
        str | None,
        typer.Option(
            "--response", help="Id of the event's response, for --up, if the event id is not unique."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of responses shown per batch.")] = 5,
    trainer_url: TrainerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show what a version was trained on, or with --up, which versions an event reached.

    Example: loopwright lineage assistant@v3-1f2e3d4c
    """
    if (version is None) == (up is None):
        raise typer.BadParameter("either a version, or --up with the id of an event must be given")
    if response is not None and up is None:
        raise typer.BadParameter("--response can only be used with --up")
    with connect(context, as_json, trainer_url=trainer_url) as loop:
        found = loop.lineage(version) if version is not None else loop.trace(str(up), response)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        out.print(_lineage_tree(found, limit) if isinstance(found, Lineage) else _trace_tree(found))


def diff(
    context: typer.Context,
    one: Annotated[str, typer.Argument(help="Name of the first version.", show_default=False)],
    other: Annotated[str, typer.Argument(help="Name of the second version.", show_default=False)],
    trainer_url: TrainerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Compare two versions: recipe, software, dataset, gate figures and training rows.

    Example: loopwright diff assistant@v2-0a1b2c3d assistant@v3-1f2e3d4c
    """
    with connect(context, as_json, trainer_url=trainer_url) as loop:
        found = loop.diff(one, other)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _print_diff(found)


def _lineage_tree(found: Lineage, limit: int) -> Tree:
    role = f", {found.role}" if found.role else ""
    tree = Tree(f"[bold]{escape(found.version)}[/] {escape(found.verdict or found.kind)}{role}")
    tree.add(f"base {escape(found.base)} ({escape(found.base_model)})")
    if found.detail:
        tree.add(escape(found.detail))
    if found.run is None:
        return tree
    run = tree.add(f"run {escape(str(found.run.get('run_id')))} {escape(str(found.run.get('stage', '')))}")
    dataset = found.dataset or {}
    digest = str(dataset.get("digest", ""))[:8]
    snapshot = run.add(
        f"snapshot {digest}: {dataset.get('examples')} rows of {dataset.get('users')} users, "
        f"{dataset.get('tokens')} tokens"
    )
    snapshot.add(f"reproducible: {'yes' if found.reproducible else 'no'}")
    for reason in found.why_not_reproducible:
        snapshot.add(f"[yellow]{escape(reason)}[/]")
    counts = found.counts
    events = snapshot.add(
        f"{counts.get('events', 0)} events on {counts.get('responses', 0)} responses by "
        f"{counts.get('users', 0)} users ({_format_counts(counts.get('kinds', {}))})"
    )
    for batch in found.batches:
        _add_batch(events, batch, limit)
    return tree


def _add_batch(tree: Tree, batch: LineageBatch, limit: int) -> None:
    name = f"batch {escape(batch.batch_id)}" if batch.batch_id else "unknown batch"
    branch = tree.add(
        f"{name}: {batch.events} events on {len(batch.responses)} responses by {batch.users} users"
    )
    for response in batch.responses[:limit]:
        leaf = branch.add(f"response {escape(response.response_id)} revision {response.revision}")
        for event in response.events:
            leaf.add(f"{event.kind} {escape(event.event_id)} by {escape(event.user[:PSEUDONYM_CHARS])}")
    if len(batch.responses) > limit:
        branch.add(f"... {len(batch.responses) - limit} more (show them with --limit or --json)")


def _trace_tree(found: Trace) -> Tree:
    tree = Tree(f"[bold]{escape(found.event_id)}[/]")
    if found.detail:
        tree.add(escape(found.detail))
    for response in found.responses:
        _add_response(tree, response)
    return tree


def _add_response(tree: Tree, response: TraceResponse) -> None:
    by = f" by {escape(response.user[:PSEUDONYM_CHARS])}" if response.user else ""
    branch = tree.add(f"response {escape(response.response_id)}: {escape(response.kind or 'event')}{by}")
    branch.add(f"now {escape(response.now)}")
    for batch in response.batches:
        branch.add(f"batch {escape(str(batch.get('batch_id')))} revision {batch.get('revision')}")
    for run in response.runs:
        branch.add(_format_run(run))


def _format_run(run: TraceRun) -> str:
    role = f", {run.role}" if run.role else ""
    if run.stage == "failed":
        result = "failed"
    elif run.version:
        result = f"{escape(run.version)} {escape(run.verdict or '')}{role}"
    else:
        result = "no version yet"
    reason = f" ({escape(run.reason)})" if run.reason else ""
    return f"run {escape(run.run_id)} -> {result}: [bold]{escape(run.state)}[/]{reason}"


def _print_diff(found: Diff) -> None:
    one, other = str(found.one.get("version")), str(found.other.get("version"))
    table = Table("", escape(one), escape(other), box=None)
    for name in ("verdict", "gated_against", "base"):
        table.add_row(name.replace("_", " "), _cell(found.one.get(name)), _cell(found.other.get(name)))
    for part, changes in (("recipe", found.recipe), ("software", found.software), ("dataset", found.dataset)):
        for name, values in changes.items():
            table.add_row(f"{part}: {escape(name)}", _cell(values[0]), _cell(values[1]))
    for figure in found.figures:
        name = escape(str(figure["name"]).replace("_", " "))
        table.add_row(name, _figure_cell(figure.get("one")), _figure_cell(figure.get("other")))
    out.print(table)
    rows = found.rows
    counts = ", ".join(
        f"{rows[name]['count']} {name}" for name in ("added", "removed", "changed") if name in rows
    )
    note = "" if rows.get("complete", True) else " (incomplete: a snapshot has lost rows)"
    out.print(f"rows: {rows.get('same', 0)} the same, {counts}{note}")


def _figure_cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure.get("value") is None:
        return "-"
    low, high = figure.get("low"), figure.get("high")
    interval = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{figure['value']:.3f}{interval} n {figure.get('n')}"


def _cell(value: Any) -> str:
    return "-" if value is None else escape(str(value))


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
