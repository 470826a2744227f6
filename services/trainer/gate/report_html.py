"""The gate's report as one page for people: self-contained, no script, nothing fetched. Pure: JSON in, HTML out.

All text of users and models is escaped by the template's autoescaping; drawings are made of numbers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Template
from markupsafe import Markup

from shared.adapters.templates import templates_in

Json = dict[str, Any]
SHOWN = 10
NAMES: Final = {
    "win_rate": ("Held-out items won", "wins among items that candidate and stable answer differently"),
    "items_score_gain": ("Score of answers", "facts and likeness to the correction, 0 to 1; change"),
    "items_facts_gain": ("Stated facts", "share of the correction's facts in the answer; change"),
    "items_chrf_gain": ("Likeness (chrF)", "to the correction, 0 to 1; change"),
    "seen_wordings_score_gain": ("Score, wordings that were trained", "for information; change"),
    "correction_likelihood_gain": ("Likelihood of corrections", "nats per token more than stable"),
    "preference_win_rate": ("Preferences won", "pairs whose margin grew, among those where it moved"),
    "preference_margin_gain": ("Margin of preferences", "nats per token more than stable"),
    "thumbs_win_rate": ("Liked over disliked", "pairs whose margin grew, among those where it moved"),
    "thumbs_margin_gain": ("Margin of liked over disliked", "nats per token more than stable"),
    "unseen_win_rate": ("Questions that were not trained", "wins; may only not get worse"),
    "general_accuracy": ("General questions right", "shipped questions with a known answer"),
    "general_accuracy_change": (
        "General questions, change",
        "McNemar's exact test decides beyond the margin",
    ),
    "general_nll_rise": ("Drift from the base's answers", "nats per token; higher is farther"),
    "general_perplexity": ("Perplexity of the base's answers", "for information"),
    "general_goes_on": (
        "General answers gone on with",
        "where the base's own were longer than it was let speak",
    ),
    "general_goes_on_change": ("General answers gone on with, change", "a fall: answers end sooner"),
    "general_kl": ("Distance from stable (KL)", "nats per token over the base's answers; for information"),
    "safety_refused": ("Harmful requests refused", "by a rule on the opening words"),
    "safety_refused_change": ("Harmful requests refused, change", ""),
    "safety_answered": ("Harmless requests answered", "that only look harmful"),
    "safety_answered_change": ("Harmless requests answered, change", ""),
    "golden_passed": ("Golden set passed", "your own questions"),
}
"""Figure -> (its name for people, what it is)."""
HEADLINES: Final = {
    "passed": "Passed: it may serve users",
    "failed": "Failed: it will not serve users",
    "inconclusive": "Inconclusive: it will not serve users yet",
}
OUTCOMES: Final = {1: "won", 0: "tie", -1: "lost"}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure as the page shows it."""

    name: str
    about: str
    value: str
    interval: str
    baseline: str
    bound: str
    n: int
    passed: bool | None
    plot: Markup


def page(whole: Json) -> str:
    """`whole`: as `told.told` gives it. Texts may be missing (erased, or not for this reader): the page says so."""
    report = whole["report"]
    items = [row for row in whole.get("items", ()) if row["counts"] == "wins"]
    best, worst = extremes(items)
    pairs = sorted(whole.get("pairs", ()), key=lambda pair: (pair["margin_gain"], pair["identity"]))
    return _template().render(
        whole=whole,
        report=report,
        headline=HEADLINES[report["verdict"]],
        figures=[row_of(figure) for figure in report["figures"] if figure["n"]],
        best=best,
        worst=worst,
        items=len(items),
        best_pairs=list(reversed(pairs))[: SHOWN // 2],
        worst_pairs=pairs[: SHOWN // 2],
        pairs=len(pairs),
        outcomes=OUTCOMES,
        texts="items" in whole,
        version=whole.get("version", ""),
        without=whole.get("without", ""),
    )


def extremes(items: Sequence[Json], most: int = SHOWN) -> tuple[list[Json], list[Json]]:
    """The best and the worst by how much better the candidate answered; none in both."""
    ordered = sorted(
        items, key=lambda row: (row["candidate_score"] - row["stable_score"], row["identity"]), reverse=True
    )
    best = ordered[:most]
    return best, list(reversed(ordered[len(best) :][-most:]))


def row_of(figure: Json) -> Row:
    name, about = NAMES.get(figure["name"], (figure["name"].replace("_", " "), ""))
    low, high = figure["low"], figure["high"]
    return Row(
        name=name,
        about=about,
        value=number(figure["value"]),
        interval="" if low is None or high is None else f"{number(low)} to {number(high)}",
        baseline=number(figure["baseline"]),
        bound=number(figure["bound"]),
        n=figure["n"],
        passed=figure["passed"],
        plot=plot(figure),
    )


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}".rstrip("0").rstrip(".") or "0"


# --- the drawing --------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, EDGE = 220, 26, 8
CHANGES = ("_gain", "_rise")


def plot(figure: Json) -> Markup:
    """Value with its interval as a dot on a line; stable a hollow dot; what had to be reached a dashed line."""
    names = ("value", "low", "high", "baseline", "bound")
    known = {name: figure[name] for name in names if figure[name] is not None}
    if figure["name"].endswith(CHANGES):
        # What stable reaches is no change, and has no place on the axis of one.
        known.pop("baseline", None)
    if "value" not in known:
        return Markup("")
    start, end = _axis(list(known.values()))

    def x(value: float) -> float:
        return round(EDGE + (WIDTH - 2 * EDGE) * (value - start) / (end - start), 1)

    middle = HEIGHT / 2
    marks = [Markup('<line class="axis" x1="0" x2="{}" y1="{}" y2="{}"/>').format(WIDTH, middle, middle)]
    if start < 0 < end:
        marks.append(
            Markup('<line class="zero" x1="{0}" x2="{0}" y1="7" y2="{1}"/>').format(x(0), HEIGHT - 7)
        )
    if "bound" in known:
        marks.append(
            Markup('<line class="bound" x1="{0}" x2="{0}" y1="1" y2="{1}"/>').format(
                x(known["bound"]), HEIGHT - 1
            )
        )
    if "low" in known and "high" in known:
        ends = (x(known["low"]), x(known["high"]), middle, middle)
        marks.append(Markup('<line class="interval" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(*ends))
    if "baseline" in known:
        marks.append(
            Markup('<circle class="baseline" cx="{}" cy="{}" r="4"/>').format(x(known["baseline"]), middle)
        )
    marks.append(Markup('<circle class="value" cx="{}" cy="{}" r="5"/>').format(x(known["value"]), middle))
    told = ", ".join(f"{name} {number(value)}" for name, value in known.items())
    tone = {True: "good", False: "bad", None: ""}[figure["passed"]]
    return Markup('<svg class="plot {}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        tone, WIDTH, HEIGHT, told, Markup("").join(marks)
    )


def _axis(values: Sequence[float]) -> tuple[float, float]:
    """Shares from 0 to 1; changes around 0, the same far both ways; what is larger, from 0."""
    if min(values) >= 0 and max(values) <= 1:
        return 0.0, 1.0
    if min(values) >= 0:
        return 0.0, max(values) * 1.05
    far = max(map(abs, values)) * 1.1
    return -far, far


@cache
def _template() -> Template:
    environment = templates_in(Path(__file__).parent)
    environment.globals["number"] = number
    return environment.get_template("report.html")
