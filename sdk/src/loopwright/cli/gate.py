"""`loopwright gate`: the gate's report on a version, as text, JSON or an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from loopwright.cli.common import (
    EXIT_REFUSED,
    AsJson,
    CommandId,
    ConsoleUrl,
    LineName,
    TrainerUrl,
    connect,
    out,
    print_error,
    print_model,
)
from loopwright.cli.operator import ResultTimeout, issue
from loopwright.models import Figure, GateReport, GateTest

VERDICT_COLOURS = {"passed": "green", "failed": "red", "inconclusive": "yellow"}
PASSED_TEXTS = {True: "[green]holds[/]", False: "[red]does not hold[/]", None: ""}


def gate(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="Name of the version.", show_default=False)],
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="PATH",
            help="Also save the report as an HTML page, with the best and worst answers (users' text).",
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Evaluate the version again first, against the version that serves now. It can then be promoted, "
            "or is promoted automatically.",
        ),
    ] = False,
    line: LineName = None,
    command_id: CommandId = None,
    timeout: ResultTimeout = 3600.0,
    console_url: ConsoleUrl = None,
    trainer_url: TrainerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show why a version passed the gate or did not: verdict, reasons and figures.

    Example: loopwright gate assistant@v3-1f2e3d4c --html gate.html
    """
    if again:
        with connect(context, as_json, console_url=console_url) as loop:
            issue(loop, "gate_again", line, version, command_id, timeout, as_json)
    with connect(context, as_json, trainer_url=trainer_url) as loop:
        report = loop.gate_report(version)
        page = loop.gate_report_html(version) if html is not None else ""
    if html is not None:
        _write(html, page)
    if as_json:
        print_model(report)
        return
    _print_report(report)
    if html is not None:
        out.print(f"report saved to {escape(str(html))}")


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        print_error(f"cannot write {path}: {error.strerror}")
        raise typer.Exit(EXIT_REFUSED) from None


def _print_report(report: GateReport) -> None:
    result = report.report
    colour = VERDICT_COLOURS.get(result.verdict, "bold")
    out.print(f"[{colour}]{escape(result.verdict)}[/] against {escape(result.gated_against or '-')}")
    for reason in result.reasons:
        out.print(f"  {escape(reason)}")
    for name, test in (("stable", result.test), ("control", result.control)):
        if test is not None:
            out.print(escape(_vote_line(name, test)))
    if result.test is not None and result.control is None:
        out.print("  control: not run")
    if result.alpha is not None:
        out.print(
            f"  gate {result.look} since the last promotion: a p-value up to {result.alpha:.2g} is allowed"
        )
    table = Table("figure", "value", "95 % interval", "baseline", "bound", "n", "", box=None)
    for figure in result.figures:
        table.add_row(*_table_row(figure))
    out.print(table)
    if report.without:
        out.print(escape(report.without))


def _vote_line(name: str, test: GateTest) -> str:
    return (
        f"  against {name}: {test.wins} won, {test.losses} lost, {test.ties} ties; "
        f"{test.users} users (p = {test.p_users:.2g}), {test.groups} questions (p = {test.p_groups:.2g})"
    )


def _table_row(figure: Figure) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    has_interval = figure.low is not None and figure.high is not None
    return (
        escape(figure.name.replace("_", " ")),
        number(figure.value),
        f"{number(figure.low)} to {number(figure.high)}" if has_interval else "",
        number(figure.baseline),
        number(figure.bound),
        str(figure.n),
        PASSED_TEXTS[figure.passed],
    )
