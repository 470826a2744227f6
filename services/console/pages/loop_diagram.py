"""The loop as a drawing shows it: five services, the count of what has passed from each to the next. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.console.pages import formatting as say
from services.console.pages.page_data import PageData
from services.console.pages.progress import Progress, Threshold


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    does: str
    now: str
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Arrow:
    """From the node of the same place to the next, the last back to the first."""

    count: str
    what: str
    moving: bool


@dataclass(frozen=True, slots=True)
class Loop:
    nodes: tuple[Node, ...]
    arrows: tuple[Arrow, ...]

    @property
    def told(self) -> str:
        """The drawing in words, for who cannot see it."""
        nodes = "; ".join(f"{node.name}: {node.now or node.does}" for node in self.nodes)
        arrows = ", ".join(f"{arrow.count} {arrow.what}" for arrow in self.arrows)
        return f"The loop. {nodes}. Passed on so far: {arrows}."


def loop_of(facts: PageData, threshold: Threshold | None, progress: Progress | None) -> Loop:
    status = facts.status or {}
    serving, batches = status.get("serving"), status.get("batches", {})
    training = progress is not None and progress.active
    trained = [v for v in facts.versions if v["kind"] != "base"]
    passed = sum(v["verdict"] == "passed" for v in trained)
    pending, seq = status.get("pending"), serving["seq"] if serving else None
    rate = "" if facts.per_minute is None else f"{say.number(round(facts.per_minute))} a minute"
    nodes = (
        Node("inference", "answers chats", f"{say.short(serving['version'])} serves" if serving else ""),
        Node("feedback", "takes what users say", rate, bool(facts.per_minute)),
        Node(
            "processor",
            "joins and batches",
            "" if pending is None else f"{say.number(pending)} pending",
            bool(pending),
        ),
        Node("trainer", "trains and tests", _trainer(threshold, progress), training),
        Node("rollout", "decides what serves", _rollout(facts)),
    )
    moving = facts.moving
    arrows = (
        Arrow(say.number(facts.chats), "chats", "chats" in moving),
        Arrow(say.number(status.get("accepted")), "events", "accepted" in moving),
        Arrow(
            say.number(batches.get("count", 0)),
            "batches" if batches.get("count") != 1 else "batch",
            "batches" in moving,
        ),
        Arrow(
            f"{passed} of {len(trained)}" if trained else "0",
            "passed" if trained else "versions",
            "versions" in moving,
        ),
        Arrow("–" if seq is None else f"no. {seq}", "decision", "seq" in moving),
    )
    return Loop(nodes, arrows)


def _trainer(threshold: Threshold | None, progress: Progress | None) -> str:
    if progress is not None and progress.active:
        return progress.stage if progress.share is None else f"{progress.stage} {progress.share:.0%}"
    return "" if threshold is None else threshold.text.removesuffix(" examples")


def _rollout(facts: PageData) -> str:
    serving = (facts.status or {}).get("serving")
    if serving is None:
        return ""
    if serving["paused"]:
        return "paused"
    if serving["canary"] is not None:
        return f"canary at {serving['share']:.0%}"
    return "all users on one"
