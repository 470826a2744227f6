"""Acceptance bars: claims about the figures of an H100 or H200. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Bar(NamedTuple):
    """A claim about the figures."""

    text: str
    met: bool
    found: str


def bars(results: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Bar]:
    """Return the bars for an H100 or H200.

    Args:
        results: Figures by (label of the arm, data set). A missing one, or one with an `error`, misses its bars.

    """

    def speed(arm: str, workload: str) -> float:
        return float(results.get((f"{arm}/7b", workload), {}).get("tokens_per_s", 0.0))

    def at_least(workload: str, least: float) -> Bar:
        found = speed("ours", workload)
        return Bar(f"{workload} rows: at least {least:,.0f} tokens/s", found >= least, f"{found:,.0f}")

    def ratio(workload: str, arms: Sequence[str], least: float, peer: str) -> Bar:
        ours, others = speed("ours", workload), [speed(arm, workload) for arm in arms]
        found = ours / max(others) if max(others) else 0.0
        return Bar(f"{workload} rows: at least {least} x {peer}", found >= least, f"{found:.2f}")

    def done(arm: str, workload: str, text: str) -> Bar:
        result = results.get((arm, workload), {"error": "no result"})
        return Bar(text, "error" not in result, str(result.get("error", "yes")))

    check = results.get(("check/check", "check"), {"passed": False, "error": "no result"})
    return [
        at_least("short", 12_000),
        ratio("short", ("trl-tuned",), 1.4, "TRL tuned"),
        at_least("long", 12_500),
        ratio("kto", ("trl", "trl-tuned"), 1.3, "TRL's best"),
        ratio("dpo", ("trl", "trl-tuned"), 1.3, "TRL's best"),
        done("small-train/7b", "short", "trains within 24 GB"),
        done("small-gate/7b", "gate", "is gated within 24 GB"),
        Bar("bf16 equals fp32", bool(check.get("passed")), str(check.get("error", check.get("passed")))),
    ]
