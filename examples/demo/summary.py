"""What a demo found, for people and as `.loopwright/demo/summary.json`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from examples.demo.chats import Answered

SHOWN = 6


class Swap(BaseModel):
    """The background load through the swap."""

    requests: int
    failed: int
    mixed_version: int


class Summary(BaseModel):
    """Shares are of `heldout_n`; `general_*` are the gate's figures for the version before and the new one."""

    heldout_n: int
    accuracy_before: float
    accuracy_after: float
    poison_learned: int
    general_before: float | None
    general_after: float | None
    feedback_accepted: int
    ledger: dict[str, int]
    pending: int
    batches: int
    version: str | None
    verdict: str | None
    gate: dict[str, Any]
    swap: Swap
    stages_s: dict[str, float]
    after_setup_s: float
    """All stages but the one that is needed once per machine."""
    receipt: str

    @property
    def closed(self) -> bool:
        """Whether each accepted event has exactly one outcome or is pending."""
        return self.feedback_accepted == sum(self.ledger.values()) + self.pending


def share_right(answers: list[Answered]) -> float:
    """0 to 1."""
    return round(sum(answer.right for answer in answers) / len(answers), 4) if answers else 0.0


def show(summary: Summary, before: list[Answered], after: list[Answered], console: Console) -> None:
    """Questions with both answers, then the figures."""
    console.print()
    answers = Table(title="Questions in wordings that were never trained", expand=True)
    for column in ("question", "before", "after"):
        answers.add_column(column, ratio=1)
    step = max(1, len(before) // SHOWN)
    for old, new in list(zip(before, after, strict=False))[::step][:SHOWN]:
        answers.add_row(old.question, _one_line(old.answer), _marked(new))
    console.print(answers)
    figures = Table.grid(padding=(0, 2))
    general = "-"
    if summary.general_before is not None and summary.general_after is not None:
        general = f"{summary.general_before:.0%} -> {summary.general_after:.0%}"
    swap = summary.swap
    rows = {
        "held-out questions": f"{summary.accuracy_before:.0%} -> {summary.accuracy_after:.0%} of {summary.heldout_n}",
        "general questions": general,
        "poison learned": str(summary.poison_learned),
        "version": f"{summary.version or 'none'}, gate: {summary.verdict or 'not reached'}",
        "chats through the swap": f"{swap.requests}, {swap.failed} failed, {swap.mixed_version} of mixed versions",
        "feedback accepted": f"{summary.feedback_accepted} in {summary.batches} batches",
        "became": ", ".join(f"{name} {count}" for name, count in sorted(summary.ledger.items()))
        + f", pending {summary.pending}"
        + ("" if summary.closed else "  (does not add up)"),
        "one receipt": summary.receipt,
        "time by stage": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in summary.stages_s.items())
        + f"; all but the set-up: {summary.after_setup_s:.0f} s",
    }
    for name, text in rows.items():
        figures.add_row(f"[dim]{name}[/dim]", text)
    console.print(figures)
    _show_gate(summary, console)


def _show_gate(summary: Summary, console: Console) -> None:
    for reason in summary.gate.get("reasons", ()):
        console.print(f"[dim]gate[/dim]  {reason}")


def _marked(answer: Answered) -> str:
    return f"[{'green' if answer.right else 'red'}]{_one_line(answer.answer)}[/]"


def _one_line(text: str) -> str:
    line = " ".join(text.split()).replace("[", "(").replace("]", ")")
    return line if len(line) <= 110 else line[:107] + "..."
