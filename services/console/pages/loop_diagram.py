"""Model of the loop diagram: five services, and how much each has passed on to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.console.pages import formatting as fmt
from services.console.pages.page_data import PageData
from services.console.pages.progress import RunView, ThresholdView

MAX_NODE_CHARACTERS: Final = 18
"""Characters of bold text that fit into a node of the drawing (`svg.NODE_W`)."""


@dataclass(frozen=True, slots=True)
class Node:
    """One service: its task, and what it is doing now."""

    name: str
    task: str
    now: str
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Arrow:
    """From the node with the same index to the next one; the last arrow leads back to the first node."""

    count: str
    unit: str
    moving: bool


@dataclass(frozen=True, slots=True)
class LoopDiagram:
    """The nodes and arrows, in the order of the loop."""

    nodes: tuple[Node, ...]
    arrows: tuple[Arrow, ...]

    @property
    def description(self) -> str:
        """The diagram in words, for screen readers."""
        nodes = "; ".join(f"{node.name}: {node.now or node.task}" for node in self.nodes)
        arrows = ", ".join(f"{arrow.count} {arrow.unit}" for arrow in self.arrows)
        return f"Diagram of the loop. {nodes}. Passed on so far: {arrows}."


def loop_diagram(data: PageData, threshold: ThresholdView | None, run: RunView | None) -> LoopDiagram:
    """Return the diagram. Unknown counts are dashes."""
    return LoopDiagram(_nodes(data, threshold, run), _arrows(data))


def _nodes(data: PageData, threshold: ThresholdView | None, run: RunView | None) -> tuple[Node, ...]:
    status = data.status or {}
    serving, pending = status.get("serving"), status.get("pending")
    rate = "" if data.events_per_minute is None else f"{fmt.number(round(data.events_per_minute))} per minute"
    return (
        Node(
            "inference",
            "answers chats",
            f"serving {fmt.short_version(serving['version'])}" if serving else "",
        ),
        Node("feedback", "accepts feedback", rate, bool(data.events_per_minute)),
        Node(
            "processor",
            "joins and batches",
            "" if pending is None else f"{fmt.number(pending)} pending",
            bool(pending),
        ),
        Node("trainer", "trains and evaluates", _trainer(threshold, run), run is not None and run.active),
        Node("rollout", "decides what serves", _rollout(data)),
    )


def _arrows(data: PageData) -> tuple[Arrow, ...]:
    status = data.status or {}
    batches = status.get("batches", {}).get("count", 0)
    decisions = status["serving"]["seq"] if status.get("serving") else None
    trained = [v for v in data.versions if v["kind"] != "base"]
    passed = sum(v["verdict"] == "passed" for v in trained)
    growing = data.growing
    return (
        Arrow(fmt.number(data.responses), _unit(data.responses, "response"), "responses" in growing),
        Arrow(
            fmt.number(status.get("accepted")), _unit(status.get("accepted"), "event"), "accepted" in growing
        ),
        Arrow(fmt.number(batches), "batch" if batches == 1 else "batches", "batches" in growing),
        Arrow(
            f"{passed} of {len(trained)}" if trained else "0",
            "passed" if trained else "versions",
            "versions" in growing,
        ),
        Arrow(fmt.number(decisions), _unit(decisions, "decision"), "decisions" in growing),
    )


def _unit(value: int | None, singular: str) -> str:
    return singular if value == 1 else f"{singular}s"


def _trainer(threshold: ThresholdView | None, run: RunView | None) -> str:
    if run is not None and run.active:
        text = run.stage if run.share is None else f"{run.stage} {run.share:.0%}"
        return text if len(text) <= MAX_NODE_CHARACTERS else run.stage
    return "" if threshold is None else threshold.text.removesuffix(" examples")


def _rollout(data: PageData) -> str:
    serving = (data.status or {}).get("serving")
    if serving is None:
        return ""
    if serving["paused"]:
        return "paused"
    if serving["canary"] is not None:
        return f"canary at {serving['share']:.0%}"
    return "no canary"
