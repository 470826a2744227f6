"""The sentences and tables that README and `docs/decisions/gate.md` quote from `benchmarks/gate.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def percent(share: float) -> str:
    """Return a share as a percentage: with one decimal place below 10."""
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def cell(result: Json, flips: float, accuracy: float, likes: float) -> Json:
    """Return the figures of one simulated service."""
    found: Json = next(
        one
        for one in result["single_gate"]
        if (one["flips"], one["accuracy"]) == (flips, accuracy) and abs(one["likes"] - likes) < 0.01
    )
    return found


def readme_sentence(result: Json) -> str:
    """Return what the README says of error rate and power."""
    summary = result["summary"]
    usual = cell(result, 0.2, 0.5, 1 / 3)
    return (
        f"In simulated services a version that is no better passes in at most {percent(summary['false_passes_worst'])} "
        f"of gates, and in at most {percent(summary['false_passes_in_thirty_gates_worst'])} of lines in 30 gates; one "
        "that fixes 30 % of what users corrected passes, with 40 held-out users, in at least "
        f"{percent(summary['power_without_flips_worst'])} if training changes nothing else, and in "
        f"{percent(usual['fixes']['with_control'])} if it also flips a fifth of all answers by chance and the base "
        "knows half"
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def single_gate(result: Json) -> str:
    """Return the table of one gate: the services with 0, 5, 10, 20 and 30 % flips."""
    rows = []
    for accuracy, likes in dict.fromkeys((one["accuracy"], one["likes"]) for one in result["single_gate"]):
        cells = [one for one in result["single_gate"] if (one["accuracy"], one["likes"]) == (accuracy, likes)]

        def series(kind: str, key: str, cells: Sequence[Json] = cells) -> str:
            return " / ".join(f"{100 * one[kind][key]:.0f}" for one in cells)

        liking = "-" if not accuracy else {1.0: "as often", 0.1: "a tenth"}.get(likes, "a third")
        rows.append(
            [
                f"{100 * accuracy:.0f} %",
                liking,
                series("no_better", "without_control"),
                " / ".join(f"{100 * one['no_better']['with_control']:.1f}" for one in cells),
                series("fixes", "with_control"),
                series("fixes_and_breaks_as_many", "with_control") if accuracy else "-",
            ]
        )
    headings = (
        "base right on", "users like", "no better, no control", "no better", "fixes 30 %", "fixes and breaks as many",
    )  # fmt: skip
    return table(headings, rows)


def thirty_gates(result: Json) -> str:
    """Return the table of thirty gates: the worst of all base accuracies."""
    rows = []
    for likes, name in ((1.0, "as often"), (1 / 3, "a third"), (0.1, "a tenth")):
        cells = [one for one in result["thirty_gates"] if abs(one["likes"] - likes) < 0.01]
        rows.append(
            [
                name,
                percent(max(one["without_control"] for one in cells)),
                percent(max(one["with_control"] for one in cells)),
            ]
        )
    return table(("users like", "promoted once, no control", "promoted once"), rows)


def by_users(result: Json) -> str:
    """Return the table of power by number of held-out users."""
    flips = sorted({one["flips"] for one in result["by_users"]})
    rows = [
        [
            str(users),
            *(
                percent(one["fixes"]["with_control"])
                for share in flips
                for one in result["by_users"]
                if (one["users"], one["flips"]) == (users, share)
            ),
        ]
        for users in sorted({one["users"] for one in result["by_users"]})
    ]
    return table(("held-out users", *(f"{100 * share:.0f} % flips" for share in flips)), rows)


def rules(result: Json) -> str:
    """Return the table of verdicts on candidates with known losses of general accuracy."""
    rows = [
        [name, *(percent(by_verdict[verdict]) for verdict in ("passed", "failed", "inconclusive"))]
        for name, by_verdict in result["rules"].items()
    ]
    return table(("true candidate", "passed", "failed", "inconclusive"), rows)


TABLES = (single_gate, thirty_gates, by_users, rules)


if __name__ == "__main__":
    import json
    from pathlib import Path

    published = json.loads(Path(__file__).parent.with_name("gate.json").read_text())
    print("\n\n".join([readme_sentence(published), *(make(published) for make in TABLES)]))
