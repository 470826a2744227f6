"""`loopwright lineage` and `diff`: from a version to the feedback behind it, from feedback to versions, and from one
version to another. Names and counts; the trainer tells no texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.tree import Tree

from loopwright.cli.common import AsJson, TrainerUrl, connected, escaped, out, print_json
from loopwright.models import Diff, Lineage, LineageBatch, Trace, TraceResponse, TraceRun

SHORT = 12
"""Characters of a pseudonym that are shown."""


def lineage(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(help="Down from this version.", show_default=False)] = None,
    up: Annotated[str | None, typer.Option("--up", metavar="EVENT", help="Up from this event.")] = None,
    response: Annotated[
        str | None, typer.Option("--response", help="The event's response, where its id alone is not enough.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Responses shown of each batch.")] = 5,
    trainer_url: TrainerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show what a version was trained from, down to the events; or, with --up, what became of an event.

    Example: loopwright lineage assistant@v3-1f2e3d4c
    """
    if (version is None) == (up is None):
        raise typer.BadParameter("say which: a version, or --up EVENT")
    if response is not None and up is None:
        raise typer.BadParameter("--response belongs to --up")
    with connected(context, as_json, trainer_url=trainer_url) as loop:
        found = loop.lineage(version) if version is not None else loop.trace(str(up), response)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        out.print(_down(found, limit) if isinstance(found, Lineage) else _up(found))


def diff(
    context: typer.Context,
    one: Annotated[str, typer.Argument(help="A version.", show_default=False)],
    other: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    trainer_url: TrainerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show what two versions differ in: recipe, rows, figures of the gate, base, software.

    Example: loopwright diff assistant@v2-0a1b2c3d assistant@v3-1f2e3d4c
    """
    with connected(context, as_json, trainer_url=trainer_url) as loop:
        found = loop.diff(one, other)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _print_diff(found)


def _down(found: Lineage, limit: int) -> Tree:
    serves = f", serves as {found.serving}" if found.serving else ""
    tree = Tree(f"[bold]{escaped(found.version)}[/] {escaped(found.verdict or found.kind)}{serves}")
    tree.add(f"base {escaped(found.base)} ({escaped(found.base_model)})")
    if found.detail:
        tree.add(escaped(found.detail))
    if found.run is None:
        return tree
    run = tree.add(f"run {escaped(str(found.run.get('run_id')))} {escaped(str(found.run.get('stage', '')))}")
    dataset = found.dataset or {}
    digest = str(dataset.get("digest", ""))[:8]
    snapshot = run.add(
        f"snapshot {digest}: {dataset.get('examples')} rows of {dataset.get('users')} users, "
        f"{dataset.get('tokens')} tokens"
    )
    snapshot.add(f"reproducible: {'yes' if found.reproducible else 'no'}")
    for reason in found.why_not_reproducible:
        snapshot.add(f"[yellow]{escaped(reason)}[/]")
    counts = found.counts
    left = snapshot.add(
        f"{counts.get('events', 0)} events on {counts.get('responses', 0)} responses by "
        f"{counts.get('users', 0)} users ({_listed(counts.get('kinds', {}))})"
    )
    for batch in found.batches:
        _add_batch(left, batch, limit)
    return tree


def _add_batch(tree: Tree, batch: LineageBatch, limit: int) -> None:
    name = escaped(batch.batch_id or "a batch that is not known any more")
    branch = tree.add(
        f"batch {name}: {batch.events} events on {len(batch.responses)} responses by {batch.users} users"
    )
    for response in batch.responses[:limit]:
        leaf = branch.add(f"response {escaped(response.response_id)} revision {response.revision}")
        for event in response.events:
            leaf.add(f"{event.kind} {escaped(event.event_id)} by {escaped(event.user[:SHORT])}")
    if len(batch.responses) > limit:
        branch.add(f"... {len(batch.responses) - limit} more (--limit, or --json for all)")


def _up(found: Trace) -> Tree:
    tree = Tree(f"[bold]{escaped(found.event_id)}[/]")
    if found.detail:
        tree.add(escaped(found.detail))
    for response in found.responses:
        _add_response(tree, response)
    return tree


def _add_response(tree: Tree, response: TraceResponse) -> None:
    by = f" by {escaped(response.user[:SHORT])}" if response.user else ""
    branch = tree.add(f"response {escaped(response.response_id)}: {escaped(response.kind or 'event')}{by}")
    branch.add(f"now {escaped(response.now)}")
    for batch in response.batches:
        branch.add(f"batch {escaped(str(batch.get('batch_id')))} revision {batch.get('revision')}")
    for run in response.runs:
        branch.add(_run(run))


def _run(run: TraceRun) -> str:
    serves = f", serves as {run.serving}" if run.serving else ""
    came = f"{escaped(run.version)} {escaped(run.verdict or '')}{serves}" if run.version else "no version yet"
    if run.stage == "failed":
        came = "failed"
    why = f" ({escaped(run.reason)})" if run.reason else ""
    return f"run {escaped(run.run_id)} -> {came}: [bold]{escaped(run.state)}[/]{why}"


def _print_diff(found: Diff) -> None:
    one, other = str(found.one.get("version")), str(found.other.get("version"))
    table = Table("", escaped(one), escaped(other), box=None)
    for name in ("verdict", "gated_against", "base"):
        table.add_row(name, _cell(found.one.get(name)), _cell(found.other.get(name)))
    for part, changed in (("recipe", found.recipe), ("software", found.software), ("dataset", found.dataset)):
        for name, pair in changed.items():
            table.add_row(f"{part}: {escaped(name)}", _cell(pair[0]), _cell(pair[1]))
    for figure in found.figures:
        table.add_row(escaped(str(figure["name"])), _figure(figure.get("one")), _figure(figure.get("other")))
    out.print(table)
    rows = found.rows
    told = ", ".join(
        f"{rows[name]['count']} {name}" for name in ("added", "removed", "changed") if name in rows
    )
    left = "" if rows.get("complete", True) else " (of what is left: a snapshot lost rows)"
    out.print(f"rows: {rows.get('same', 0)} the same, {told}{left}")


def _figure(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure.get("value") is None:
        return "-"
    low, high = figure.get("low"), figure.get("high")
    between = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{figure['value']:.3f}{between} n {figure.get('n')}"


def _cell(value: Any) -> str:
    return "-" if value is None else escaped(str(value))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
