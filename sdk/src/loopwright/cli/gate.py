"""`loopwright gate`: why a version passed or did not, with every figure; as a page with the answers side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from loopwright.cli.common import REFUSED, AsJson, TrainerUrl, connected, err, escaped, out, print_json
from loopwright.models import Figure, GateReport

TONES = {"passed": "green", "failed": "red", "inconclusive": "yellow"}


def gate(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="The version.", show_default=False)],
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="PATH", help="Write the report there as one page. It holds users' text."
        ),
    ] = None,
    trainer_url: TrainerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show what the gate found of a version: verdict, reasons, figures; with --html also the best and worst answers.

    Example: loopwright gate assistant@v3-1f2e3d4c --html gate.html
    """
    with connected(context, as_json, trainer_url=trainer_url) as loop:
        found = loop.gate_report(version)
        page = loop.gate_page(version) if html is not None else ""
    if html is not None:
        _write(html, page)
    if as_json:
        print_json(found.model_dump(mode="json", exclude_none=True))
        return
    _tell(found)
    if html is not None:
        out.print(f"written to {escaped(str(html))}")


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        err.print(
            f"[red]loopwright:[/] {escaped(str(path))} cannot be written: {escaped(str(error.strerror))}"
        )
        raise typer.Exit(REFUSED) from None


def _tell(found: GateReport) -> None:
    report = found.report
    tone = TONES.get(report.verdict, "bold")
    out.print(f"[{tone}]{escaped(report.verdict)}[/] against {escaped(report.gated_against or '-')}")
    for reason in report.reasons:
        out.print(f"  {escaped(reason)}")
    table = Table("figure", "value", "95 %", "stable", "bound", "n", "", box=None)
    for figure in report.figures:
        table.add_row(*_row(figure))
    out.print(table)
    if found.without:
        out.print(escaped(found.without))


def _row(figure: Figure) -> tuple[str, ...]:
    def short(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    both = figure.low is not None and figure.high is not None
    holds = {True: "[green]holds[/]", False: "[red]does not[/]", None: ""}[figure.passed]
    return (
        escaped(figure.name.replace("_", " ")),
        short(figure.value),
        f"{short(figure.low)} to {short(figure.high)}" if both else "",
        short(figure.baseline),
        short(figure.bound),
        str(figure.n),
        holds,
    )
