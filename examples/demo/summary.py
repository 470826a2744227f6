"""Results of a demo, printed and written to `.loopwright/demo/summary.json`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from examples.demo.chats import ExamAnswer

EXAMPLES_SHOWN = 6


class Swap(BaseModel):
    """Background chats during training and swap."""

    requests: int
    failed: int
    mixed_version: int


class Summary(BaseModel):
    """Results of a demo.

    `accuracy_*` are shares of the `heldout_n` questions; `general_*` are the gate's figures for the stable version and
    the candidate.
    """

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
    """Seconds for all stages except the set-up, which is needed once per machine."""
    receipt: str

    @property
    def closed(self) -> bool:
        """Whether each accepted event has exactly one outcome or is pending."""
        return self.feedback_accepted == sum(self.ledger.values()) + self.pending


def share_right(answers: list[ExamAnswer]) -> float:
    """Return the share of right answers, 0 to 1."""
    return round(sum(answer.right for answer in answers) / len(answers), 4) if answers else 0.0


def print_summary(
    summary: Summary, before: list[ExamAnswer], after: list[ExamAnswer], console: Console
) -> None:
    """Print some questions with both answers, then the results."""
    console.print()
    answers = Table(title="Held-out questions (wordings that were never trained)", expand=True)
    for column in ("Question", "Before", "After"):
        answers.add_column(column, ratio=1)
    step = max(1, len(before) // EXAMPLES_SHOWN)
    for old, new in list(zip(before, after, strict=False))[::step][:EXAMPLES_SHOWN]:
        answers.add_row(old.question, _one_line(old.answer), _colored(new))
    console.print(answers)
    figures = Table.grid(padding=(0, 2))
    general = "-"
    if summary.general_before is not None and summary.general_after is not None:
        general = f"{summary.general_before:.0%} -> {summary.general_after:.0%}"
    swap = summary.swap
    rows = {
        "Held-out questions right": f"{summary.accuracy_before:.0%} -> {summary.accuracy_after:.0%} "
        f"of {summary.heldout_n}",
        "General questions right": general,
        "Poisoned answers learned": str(summary.poison_learned),
        "New version": f"{summary.version or 'none'}, gate verdict: {summary.verdict or 'none'}",
        "Chats during the swap": f"{swap.requests}, {swap.failed} failed, {swap.mixed_version} with mixed versions",
        "Feedback accepted": f"{summary.feedback_accepted} in {summary.batches} batches",
        "Outcomes": ", ".join(f"{name} {count}" for name, count in sorted(summary.ledger.items()))
        + f", pending {summary.pending}"
        + ("" if summary.closed else " (does not add up to the accepted events)"),
        "Example receipt": summary.receipt,
        "Time by stage": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in summary.stages_s.items())
        + f"; total without set-up: {summary.after_setup_s:.0f} s",
    }
    for name, text in rows.items():
        figures.add_row(f"[dim]{name}[/dim]", text)
    console.print(figures)
    _show_gate(summary, console)


def _show_gate(summary: Summary, console: Console) -> None:
    for reason in summary.gate.get("reasons", ()):
        console.print(f"[dim]Gate[/dim]  {reason}")


def _colored(answer: ExamAnswer) -> str:
    return f"[{'green' if answer.right else 'red'}]{_one_line(answer.answer)}[/]"


def _one_line(text: str) -> str:
    line = " ".join(text.split()).replace("[", "(").replace("]", ")")
    return line if len(line) <= 110 else line[:107] + "..."
